"""The store of secrets, ``<root>/secrets``: encrypted by systemd-creds(1) where the host has it.

A secret gets into it by standard input and out of it into memory, at ``up``: no command line, no journal and no fact
ever has it. It is encrypted for this host (its TPM, or /var/lib/systemd/credential.secret): a copy of the disk, or of a
backup, without those tells nothing.
"""

from __future__ import annotations

import binascii
import os
import stat

from podrun import atomic
from podrun.errors import CANNOT_CREATE, NOT_ALLOWED, UNAVAILABLE, WRONG_FILE, Failure
from podrun.options import Wrong
from podrun.record import NamedTuple
from podrun_hooks.storage.options import volume_name
from podrun_hooks.support import subprocesses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: Bytes; what docker takes.
MOST = 500 * 1024
_PATH = ("/usr/bin/systemd-creds", "/bin/systemd-creds")
_ENCRYPTED, _PLAIN = ".credential", ".plain"


class Secret(NamedTuple):
    """What is known of a secret without reading it."""

    name: str
    #: Seconds since 1970.
    created: float
    encrypted: bool


def create(root: str, name: str, content: bytes, *, replace: bool = False) -> Secret:
    """Keeps a secret. Raises Failure: CANNOT_CREATE for one that is there, WRONG_FILE for a name or an empty one."""
    _checked(name)
    if not content or len(content) > MOST:
        raise Failure(f"secret {name}: expected 1 to {MOST} bytes, not {len(content)}", code=WRONG_FILE)
    if not replace and _file_of(root, name):
        raise Failure(f"there is a secret {name} already", code=CANNOT_CREATE, hint="'podrun secret rm', or --replace")
    program = _program()
    kept = _creds(program, "encrypt", name, content) if program else content
    path = f"{root}/secrets/{name}{_ENCRYPTED if program else _PLAIN}"
    atomic.replace(path, kept, parents=0o700, sync=True)
    for other in _files_of(root, name):
        if other != path:
            os.unlink(other)
    return Secret(name, os.stat(path).st_mtime, bool(program))


def listed(root: str) -> list[Secret]:
    """All secrets, by name."""
    try:
        names = sorted(os.listdir(f"{root}/secrets"))
    except FileNotFoundError:
        return []
    found = []
    for file in names:
        for suffix in (_ENCRYPTED, _PLAIN):
            if file.endswith(suffix):
                created = os.stat(f"{root}/secrets/{file}").st_mtime
                found.append(Secret(file.removesuffix(suffix), created, suffix == _ENCRYPTED))
    return found


def remove(root: str, name: str) -> None:
    """Forgets a secret. Pods that are up keep theirs. Raises Failure (UNAVAILABLE) when there is none."""
    if not _file_of(root, name):
        raise missing(name)
    for path in _files_of(root, name):
        atomic.remove(path)


def read(root: str, name: str) -> bytes:
    """What is in a secret. Raises Failure: UNAVAILABLE when there is none, NOT_ALLOWED when it is another host's."""
    path = _file_of(root, name)
    if not path:
        raise missing(name)
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Failure(f"{path} is not a plain file", code=NOT_ALLOWED)
        kept = file.read(2 * MOST)
    if path.endswith(_PLAIN):
        return kept
    program = _program()
    if not program:
        raise Failure(f"secret {name} takes systemd-creds, which is gone", code=UNAVAILABLE, hint="install systemd")
    return _creds(program, "decrypt", name, kept)


def is_there(root: str, name: str) -> bool:
    """Whether there is such a secret."""
    return bool(_file_of(root, name))


def missing(name: str) -> Failure:
    """The failure that tells of a secret that is not there."""
    return Failure(f"there is no secret {name}", code=UNAVAILABLE, hint=f"podrun secret create {name} < FILE")


def _creds(program: str, verb: str, name: str, content: bytes) -> bytes:
    """What systemd-creds makes of the content; base64 on its standard output, as that is text."""
    coding = ["--transcode=base64"] if verb == "decrypt" else []
    ended = subprocesses.run([program, verb, f"--name=podrun.{name}", *coding, "-", "-"], stdin=content)
    if ended.status:
        words = (ended.errors.strip().splitlines() or ["it does not say why"])[-1]
        hint = "was it made on another host?" if verb == "decrypt" else ""
        raise Failure(f"secret {name}: systemd-creds: {words}", code=NOT_ALLOWED, hint=hint)
    # What is encrypted is base64 with line breaks, and decrypt takes it as it is.
    return binascii.a2b_base64(ended.output) if verb == "decrypt" else ended.output.encode()


def _program() -> str:
    return next((path for path in _PATH if os.path.exists(path)), "")


def _checked(name: str) -> None:
    try:
        volume_name(name)
    except Wrong:
        what = f"{name!r} cannot be a secret's name: letters, digits, '-', '_' and '.'"
        raise Failure(what, code=WRONG_FILE) from None


def _files_of(root: str, name: str) -> Iterator[str]:
    _checked(name)
    for suffix in (_ENCRYPTED, _PLAIN):
        if os.path.lexists(path := f"{root}/secrets/{name}{suffix}"):
            yield path


def _file_of(root: str, name: str) -> str:
    return next(_files_of(root, name), "")
