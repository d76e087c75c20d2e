"""Verifies signatures: cosign's with the cosign command, "simple signing" with gpgv and a registry's lookaside server.

containers-signature(5) defines the format; ``signatures`` in registries.toml is the URL of the lookaside server.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from podrun.errors import MALFORMED, UNAVAILABLE, WRONG_FILE, Failure
from podrun_hooks.image import reference
from podrun_hooks.image.reference import Reference
from podrun_hooks.image.registry import config
from podrun_hooks.image.registry.client import Client
from podrun_hooks.image.registry.credentials import anonymous
from podrun_hooks.image.registry.http import Broken
from podrun_hooks.image.trust.requirements import COSIGN, Demand, content_of, key_files
from podrun_hooks.support import trusted

#: Most signatures of one image that are tried, and the largest size of one in bytes.
_MOST, _LARGEST = 32, 1 << 20
_TIMEOUT = 120


def check(demanded: Sequence[Demand], named: Reference, digests: Sequence[str]) -> None:
    """Returns if every demand is met for one of the digests, those of the image's index and of the chosen manifest.

    Raises Failure: MALFORMED if a demand is not met, UNAVAILABLE if that cannot be decided.
    """
    for demand in demanded:
        (_cosign if demand.kind == COSIGN else _signed_by)(demand.what, named, list(dict.fromkeys(digests)))


def _command(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise Failure(f"verify needs {name}, which is not installed", code=UNAVAILABLE, hint="the image was not used")
    return path


# --- cosign


def _cosign(key: str, named: Reference, digests: list[str]) -> None:
    reason = ""
    for digest in digests:
        image = f"{named.registry}/{named.repository}@{digest}"
        argv = [_command("cosign"), "verify", "--key", _key(key), image]
        try:
            done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise Failure(f"cosign verify {image} takes longer than {_TIMEOUT} s", code=UNAVAILABLE) from None
        if done.returncode == 0:
            return
        reason = next(iter(reversed(done.stderr.strip().splitlines())), f"status {done.returncode}")[:300]
    raise Failure(f"{named.text}: cosign does not verify it: {reason}", code=MALFORMED)


def _key(key: str) -> str:
    """The key in cosign's spelling; a file's path is resolved first, so that only root can redirect it."""
    return key if "://" in key else trusted.place(key, "/etc/podrun", strict=False)


# --- simple signing


def _signed_by(required: dict[str, Any], named: Reference, digests: list[str]) -> None:
    _command("gpgv")
    reason = "there is no signature of it"
    with tempfile.TemporaryDirectory(prefix="podrun-") as scratch:
        ring = _keyring(required, scratch)
        for digest in digests:
            for signature in _lookaside(named, digest):
                try:
                    _check_payload(_signed(signature, ring, scratch), required, named, digest)
                    return
                except Failure as failure:
                    if failure.code != MALFORMED:
                        raise
                    reason = failure.what
    raise Failure(f"{named.text}: {reason}", code=MALFORMED, hint="its policy demands one")


def _keyring(required: dict[str, Any], scratch: str) -> str:
    """Writes all keys of a requirement into one file, in OpenPGP's binary form; returns its path."""
    contents = []
    for path in key_files(required):
        contents.append(content_of(path))
    try:
        if "keyData" in required:
            contents.append(base64.b64decode(required["keyData"], validate=True))
        ring = b"".join(map(_binary, contents))
    except (ValueError, TypeError):
        raise Failure("policy: a key is neither OpenPGP's binary form nor its armor", code=WRONG_FILE) from None
    path = f"{scratch}/keys.gpg"
    with open(path, "wb") as file:
        file.write(ring)
    return path


def _binary(key: bytes) -> bytes:
    """A key without its armor (RFC 4880, 6.2): gpgv reads only the binary form."""
    if not key.lstrip().startswith(b"-----BEGIN"):
        return key
    lines = [line.strip() for line in key.strip().splitlines()]
    body = lines[lines.index(b"") + 1 : lines.index(b"-----END PGP PUBLIC KEY BLOCK-----")]
    return base64.b64decode(b"".join(line for line in body if not line.startswith(b"=")), validate=True)


def _lookaside(named: Reference, digest: str) -> Iterator[bytes]:
    """The signatures that the lookaside server has for a digest."""
    known = config.load()
    base = known[named.registry].signatures if named.registry in known else ""
    if not base:
        raise Failure(
            f"{named.text}: where the signatures of {named.registry} are is not known",
            code=UNAVAILABLE,
            hint="set signatures in registries.toml",
        )
    for number in range(1, _MOST + 1):
        place = f"{base}/{named.repository}@{digest.replace(':', '=')}/signature-{number}"
        content = _read(place, named)
        if content is None:
            return
        yield content


def _read(place: str, named: Reference) -> bytes | None:
    """The content at a URL; None if it does not exist."""
    if place.startswith("file://"):
        try:
            return _content(place.removeprefix("file://"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Failure(f"{place}: {error.strerror}", code=UNAVAILABLE) from None
    client = Client(config.Endpoint(named.registry, ""), named.text, anonymous)
    try:
        response = client.follow("GET", place, {}, "")
        if response.status == 404:
            return None
        if response.status != 200:
            raise client.refused(response)
        return client.whole(response, "signature")
    except Broken as error:
        raise client.unreachable(error) from None
    finally:
        client.close()


def _content(path: str) -> bytes:
    """A file's content; b"" for a FIFO, which is opened without blocking."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        return (file.read(_LARGEST) or b"") if stat.S_ISREG(os.fstat(fd).st_mode) else b""


def _signed(signature: bytes, ring: str, scratch: str) -> bytes:
    """The content that a key of the ring has signed. Raises Failure (MALFORMED) if it is not signed by one."""
    path = f"{scratch}/signature"
    with open(path, "wb") as file:
        file.write(signature)
    reading, writing = os.pipe()
    try:
        argv = ["gpgv", "--homedir", scratch, "--keyring", ring, "--status-fd", str(writing), "--output", "-", path]
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, pass_fds=(writing,), timeout=_TIMEOUT, check=False
        )
        os.set_blocking(reading, False)
        os.close(writing)
        writing = -1
        status = os.read(reading, 1 << 16).decode(errors="replace").splitlines()
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
    words = [line.split()[1] for line in status if line.startswith("[GNUPG:] ") and len(line.split()) > 1]
    wrong = {"BADSIG", "ERRSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG", "NO_PUBKEY"} & set(words)
    if (
        done.returncode
        or wrong
        or (words.count("GOODSIG"), words.count("VALIDSIG"), words.count("PLAINTEXT")) != (1, 1, 1)
    ):
        why = f" ({', '.join(sorted(wrong))})" if wrong else ""
        raise Failure(f"its signature is not by a key that the policy names{why}", code=MALFORMED)
    return done.stdout


def _check_payload(content: bytes, required: dict[str, Any], named: Reference, digest: str) -> None:
    try:
        critical = json.loads(content)["critical"]
        kind = critical["type"]
        signed, name = critical["image"]["docker-manifest-digest"], critical["identity"]["docker-reference"]
    except (ValueError, LookupError, TypeError):
        kind = signed = name = None
    if kind != "atomic container signature" or not isinstance(signed, str) or not isinstance(name, str):
        raise Failure("its signature is not of the form of containers-signature(5)", code=MALFORMED)
    if signed != digest:
        raise Failure(f"its signature is for {signed[:80]}", code=MALFORMED)
    if not _is_identity(required.get("signedIdentity") or {"type": "matchRepoDigestOrExact"}, name, named):
        raise Failure(f"its signature is for the name {name[:200]}", code=MALFORMED)


def _is_identity(identity: Any, name: str, named: Reference) -> bool:
    """Whether a signature for ``name`` is valid for this image by signedIdentity of containers-policy.json(5)."""
    repository = f"{named.registry}/{named.repository}"
    kind = identity.get("type") if isinstance(identity, dict) else None
    if kind == "matchRepoDigestOrExact":
        return _repository(name) == repository if named.digest else _exact(name) == named.text
    if kind == "matchExact":
        return _exact(name) == named.text
    if kind == "matchRepository":
        return _repository(name) == repository
    if kind == "exactReference":
        return _exact(name) == _exact(str(identity.get("dockerReference")))
    if kind == "exactRepository":
        return _repository(name) == _repository(str(identity.get("dockerRepository")))
    if kind == "remapIdentity":
        return _is_identity({"type": "matchRepoDigestOrExact"}, name, _remapped(identity, named))
    raise Failure(f"policy: the signedIdentity {kind!r} is not known here", code=UNAVAILABLE)


def _remapped(identity: dict[str, Any], named: Reference) -> Reference:
    """The name for which an image is signed: for an image of a mirror, the original's name."""
    prefix, signed = identity.get("prefix"), identity.get("signedPrefix")
    if not (isinstance(prefix, str) and prefix and isinstance(signed, str) and signed):
        raise Failure("policy: remapIdentity wants a prefix and a signedPrefix", code=WRONG_FILE)
    if not f"{named.registry}/{named.repository}/".startswith(f"{prefix}/"):
        return named
    return reference.parse(f"{signed}{named.text.removeprefix(prefix)}")


def _repository(name: str) -> str:
    try:
        named = reference.parse(name)
    except Failure:
        return ""
    return f"{named.registry}/{named.repository}"


def _exact(name: str) -> str:
    """The normalized spelling of a name; a name without tag or digest gives a text that matches nothing."""
    if ":" not in name.rpartition("/")[2]:
        return f"{name} without a tag"
    try:
        return reference.parse(name).text
    except Failure:
        return f"{name} is not a name"
