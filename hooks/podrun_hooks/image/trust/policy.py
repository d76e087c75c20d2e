"""Reads containers-policy.json(5) as strictly as its other readers do: anything not understood is an error.

A reader that ignored a part of a policy would accept images that this part rejects. So unknown keys, duplicate keys,
scopes without requirements and unknown transports are errors, and an error rejects the image.
"""

from __future__ import annotations

from podrun import jsontext
from podrun.errors import WRONG_FILE, Failure
from podrun.options import Wrong

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SIGNED_BY = "signedBy"

#: The transports of containers-transports(5), and podrun's "host".
_TRANSPORTS = (
    "host", "atomic", "containers-storage", "dir", "docker", "docker-archive", "docker-daemon", "oci", "oci-archive",
    "ostree", "sif", "tarball",
)  # fmt: skip
_KEYS = ("keyPath", "keyPaths", "keyData")
#: The keys that a requirement may have besides "type".
_REQUIREMENTS = {
    "insecureAcceptAnything": (),
    "reject": (),
    SIGNED_BY: ("keyType", *_KEYS, "signedIdentity"),
    "sigstoreSigned": (
        *_KEYS, "keyDatas", "fulcio", "pki", "rekorPublicKeyPath", "rekorPublicKeyPaths", "rekorPublicKeyData",
        "rekorPublicKeyDatas", "signedIdentity",
    ),
    "signedBaseLayer": ("baseLayerIdentity",),
}  # fmt: skip
#: The keys that an identity must have besides "type".
_IDENTITIES = {
    "matchExact": (),
    "matchRepoDigestOrExact": (),
    "matchRepository": (),
    "exactReference": ("dockerReference",),
    "exactRepository": ("dockerRepository",),
    "remapIdentity": ("prefix", "signedPrefix"),
}


class Policy:
    """The requirements by transport and scope, and the default ones."""

    def __init__(self, default: list[Any], transports: dict[str, dict[str, list[Any]]]) -> None:
        self.default = default
        self.transports = transports

    def requirements(self, transport: str, scopes: list[str]) -> list[Any]:
        """The requirements of the first of ``scopes`` that the policy has; ``scopes`` go from specific to general."""
        known = self.transports.get(transport, {})
        return next((known[scope] for scope in scopes if scope in known), self.default)


def read(content: bytes, path: str) -> Policy:
    """Parses the policy in a file's content; ``path`` is for messages. Raises Failure (WRONG_FILE)."""
    try:
        value = _object(jsontext.loads(content.decode(), pairs=_once), "the policy", ("default", "transports"))
        if "default" not in value:
            raise Wrong("default is missing")
        transports = _object(value.get("transports", {}), "transports", _TRANSPORTS)
        for transport, scopes in transports.items():
            for scope, listed in _object(scopes, transport).items():
                _listed(listed, f"{transport}: {scope!r}")
        return Policy(_listed(value["default"], "default"), transports)
    except Wrong as wrong:
        what = wrong.what
    except RecursionError:
        what = "it is nested too deeply"
    except ValueError as error:
        what = str(error)
    raise Failure(
        f"{path} is not a containers-policy.json(5): {what}", code=WRONG_FILE, hint="nothing is accepted by it"
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for n, (key, _) in enumerate(pairs) if key in dict(pairs[:n]))
        raise Wrong(f"{twice!r} is given twice")
    return found


def _object(value: Any, what: str, known: tuple[str, ...] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Wrong(f"{what}: expected an object")
    if known is not None and (unknown := [key for key in value if key not in known]):
        raise Wrong(f"{what}: unknown key {unknown[0]!r}")
    return value


def _listed(value: Any, what: str) -> list[Any]:
    """Checks the requirements of a scope. Raises Wrong."""
    if not isinstance(value, list) or not value:
        raise Wrong(f"{what}: expected requirements, at least one")
    for required in value:
        kind = required.get("type") if isinstance(required, dict) else None
        if not isinstance(kind, str) or kind not in _REQUIREMENTS:
            raise Wrong(f"{what}: {kind!r} is not a type of requirement")
        _object(required, f"{what}: {kind}", ("type", *_REQUIREMENTS[kind]))
        if kind == SIGNED_BY:
            _signed_by(required, what)
    return value


def _signed_by(required: dict[str, Any], what: str) -> None:
    keys = [key for key in _KEYS if key in required]
    if required.get("keyType") != "GPGKeys" or len(keys) != 1:
        raise Wrong(f"{what}: signedBy wants keyType GPGKeys and one of {', '.join(_KEYS)}")
    value = required[keys[0]]
    paths = value if keys == ["keyPaths"] else [value]
    if not isinstance(paths, list) or not paths or not all(isinstance(one, str) and one for one in paths):
        raise Wrong(f"{what}: {keys[0]} is not what it should be")
    if keys != ["keyData"] and not all(path.startswith("/") for path in paths):
        raise Wrong(f"{what}: {keys[0]}: expected absolute paths")
    identity = required.get("signedIdentity", {"type": "matchRepoDigestOrExact"})
    kind = identity.get("type") if isinstance(identity, dict) else None
    if not isinstance(kind, str) or kind not in _IDENTITIES:
        raise Wrong(f"{what}: {kind!r} is not a type of identity")
    _object(identity, f"{what}: signedIdentity", ("type", *_IDENTITIES[kind]))
    if not all(isinstance(identity.get(key), str) and identity[key] for key in _IDENTITIES[kind]):
        raise Wrong(f"{what}: {kind} wants {' and '.join(_IDENTITIES[kind])}")
