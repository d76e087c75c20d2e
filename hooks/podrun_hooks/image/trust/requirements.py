"""The signatures that an image must have before it is used: by a cosign key, or by a containers-policy.json(5).

This module collects the demands and looks up which have been verified before; a start needs no more than that.
signatures.py verifies them.
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

#: The machine's policy, if it exists. It applies to every image step that does not name another policy.
GLOBAL = "/etc/containers/policy.json"

_LARGEST = 1 << 20


class Verify(NamedTuple):
    """The ``verify`` option of an image step."""

    cosign_key: str = option(
        TEXT, "the public key (a file, or what cosign takes) that has to have signed the image", ""
    )
    policy: str = option(ABSOLUTE, "a containers-policy.json(5) that has to accept the image", "")


class Demand(NamedTuple):
    """A signature that an image must have."""

    #: COSIGN or SIGNED_BY
    kind: str
    #: For COSIGN the key, for SIGNED_BY the requirement in the policy.
    what: Any
    #: Changes with the image's name, the demand and the keys.
    fingerprint: str


def demands(verify: Verify | None, named: Reference) -> list[Demand]:
    """The signatures that an image of this name must have.

    Raises Failure: MALFORMED if the policy rejects the image, UNAVAILABLE for a requirement that podrun cannot verify,
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
    """The key files of a signedBy requirement; [] if it holds its keys as data."""
    return [required["keyPath"]] if "keyPath" in required else list(required.get("keyPaths", []))


def _global(named: Reference) -> str:
    """The machine's policy if there is one, else "". It does not apply to host: and dir:, which are not images."""
    local = named.kind in (reference.HOST, reference.DIR)
    return GLOBAL if not local and os.path.lexists(GLOBAL) else ""


def _requirements(policy: str, named: Reference) -> list[Any]:
    """The requirements of the most specific scope that contains the image."""
    from podrun_hooks.image.trust import policy as policies

    transport = "docker" if named.kind == reference.REGISTRY else named.kind
    return policies.read(content_of(policy), policy).requirements(transport, _scopes(named))


def _scopes(named: Reference) -> list[str]:
    """The scopes of a policy that contain an image, the most specific first."""
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
    """The content of a policy or key file. Raises Failure if other users than root could change it."""
    try:
        return trusted.content(path, "/etc/podrun", _LARGEST)
    except FileNotFoundError:
        raise Failure(f"verify: {path} is not there", code=WRONG_FILE) from None


def _fingerprint(named: Reference, *parts: bytes) -> str:
    from _blake2 import blake2s

    sized = b"".join(b"%d:%s" % (len(part), part) for part in (os.fsencode(named.text), *parts))
    return str(blake2s(sized, digest_size=16).hexdigest())


# --- earlier verifications


def proof(root: str, demand: Demand, digest: str) -> str:
    """The file whose existence records that the image with this manifest digest meets a demand."""
    return f"{root}/images/verified/{digest.removeprefix('sha256:')}-{demand.fingerprint}"


def proved(root: str, demanded: Sequence[Demand], digest: str) -> bool:
    """Whether an image was verified to meet all demands before."""
    return all(os.path.exists(proof(root, demand, digest)) for demand in demanded)
