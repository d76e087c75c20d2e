"""What has to be proved of an image before it is used: cosign's key, or a policy as containers-policy.json(5) has it.

This file knows what is demanded and what has been proved before; a start reads nothing else. See signatures.py.
"""

from __future__ import annotations

import os

from podrun import jsontext
from podrun.errors import MALFORMED, UNAVAILABLE, WRONG_FILE, Failure
from podrun.options import ABSOLUTE, TEXT, option
from podrun.record import NamedTuple
from podrun_hooks.image import reference
from podrun_hooks.support import trusted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from podrun_hooks.image.reference import Reference

COSIGN = "cosign"
SIGNED_BY = "signedBy"

#: The machine's policy, which holds for every image that does not name another one; where there is none, none holds.
GLOBAL = "/etc/containers/policy.json"

_LARGEST = 1 << 20


class Verify(NamedTuple):
    """The ``verify`` option of an image step."""

    cosign_key: str = option(
        TEXT, "the public key (a file, or what cosign takes) that has to have signed the image", ""
    )
    policy: str = option(ABSOLUTE, "a containers-policy.json(5) that has to accept the image", "")


class Demand(NamedTuple):
    """A signature that is demanded."""

    #: COSIGN or SIGNED_BY
    kind: str
    #: The key for cosign; the requirement of the policy.
    what: Any
    #: Changes with the image's name, the demand and the keys.
    fingerprint: str


def demands(verify: Verify | None, named: Reference) -> list[Demand]:
    """The signatures that an image of this name has to have.

    Raises Failure: MALFORMED when the policy rejects it, UNAVAILABLE for a demand that nothing here can prove,
    WRONG_FILE for a policy that cannot be read.
    """
    found: list[Demand] = []
    if verify and not verify.cosign_key and not verify.policy:
        raise Failure("verify: neither cosign_key nor policy is given", code=WRONG_FILE)
    policy = (verify.policy if verify else "") or _global(named)
    if verify and verify.cosign_key:
        key = verify.cosign_key
        content = b"" if "://" in key else content_of(key)
        found.append(Demand(COSIGN, key, _fingerprint(named, key.encode(), content)))
    for required in _requirements(policy, named) if policy else ():
        kind = required["type"]
        if kind == "insecureAcceptAnything":
            continue
        if kind == "reject":
            raise Failure(f"{named.text}: {policy} rejects it", code=MALFORMED)
        if kind != SIGNED_BY:
            raise Failure(f"{policy}: nothing here can verify {kind!r}", code=UNAVAILABLE)
        content = b"\n".join(map(content_of, key_files(required)))
        found.append(Demand(SIGNED_BY, required, _fingerprint(named, jsontext.dumps(required).encode(), content)))
    if found and named.kind != reference.REGISTRY:
        raise Failure(f"{named.text}: only images of registries have signatures", code=UNAVAILABLE)
    return found


def key_files(required: Any) -> list[str]:
    """The key files of a signedBy requirement; it may have its keys in itself instead."""
    return [required["keyPath"]] if "keyPath" in required else list(required.get("keyPaths", []))


def _global(named: Reference) -> str:
    """The policy of the machine, where there is one; the machine itself and its directories are no images to it."""
    local = named.kind in (reference.HOST, reference.DIR)
    return GLOBAL if not local and os.path.lexists(GLOBAL) else ""


def _requirements(policy: str, named: Reference) -> list[Any]:
    """The requirements of the most specific scope that the image is in."""
    from podrun_hooks.image.trust import policy as policies

    transport = "docker" if named.kind == reference.REGISTRY else named.kind
    return policies.read(content_of(policy), policy).requirements(transport, _scopes(named))


def _scopes(named: Reference) -> list[str]:
    """The names under which a policy may speak of an image, the most specific first."""
    if named.kind != reference.REGISTRY:
        # containers-transports(5): a path, each of its parents, and "" for the whole transport.
        whole = named.text.partition(":")[2]
        parts = named.path.split("/")
        return [whole, *("/".join(parts[:count]) or "/" for count in range(len(parts), 0, -1)), ""]
    parts = f"{named.registry}/{named.repository}".split("/")
    found = [named.text, *("/".join(parts[:count]) for count in range(len(parts), 0, -1))]
    labels = named.registry.partition(":")[0].split(".")
    return [*found, *("*." + ".".join(labels[count:]) for count in range(1, len(labels))), ""]


def content_of(path: str) -> bytes:
    """A policy, or a key that one names. Raises Failure for what others than root could change."""
    try:
        return trusted.content(path, "/etc/podrun", _LARGEST)
    except FileNotFoundError:
        raise Failure(f"verify: {path} is not there", code=WRONG_FILE) from None


def _fingerprint(named: Reference, *parts: bytes) -> str:
    from _blake2 import blake2s

    sized = b"".join(b"%d:%s" % (len(part), part) for part in (os.fsencode(named.text), *parts))
    return str(blake2s(sized, digest_size=16).hexdigest())


# --- what has been proved


def proof(root: str, demand: Demand, digest: str) -> str:
    """The file that says that the image with this manifest digest meets a demand."""
    return f"{root}/images/verified/{digest.removeprefix('sha256:')}-{demand.fingerprint}"


def proved(root: str, demanded: Sequence[Demand], digest: str) -> bool:
    """Whether an image has met all demands before."""
    return all(os.path.exists(proof(root, demand, digest)) for demand in demanded)
