"""Idmapped mounts: whose files are whose, by a user namespace that exists for its mapping alone (mount_setattr(2))."""

from __future__ import annotations

import errno
import os

from podrun.errors import STEP_FAILED, UNAVAILABLE, Failure
from podrun_hooks.support import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_CLONE_NEWUSER = 0x10000000


def apply(tree: int, mappings: Sequence[str], path: str) -> None:
    """Maps owners on the detached mount ``tree``. ``mappings``: "[uid:|gid:]there:here:count", without a prefix both.

    Raises Failure: UNAVAILABLE when the file system cannot (idmapped mounts came to each of them on its own).
    """
    namespace = _namespace(mappings)
    try:
        syscalls.mount_setattr(tree, syscalls.MOUNT_ATTR_IDMAP, recursive=True, userns=namespace)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            what = f"the file system of {path} cannot be mounted with other owners"
            raise Failure(what, code=UNAVAILABLE, hint="idmap needs one that knows idmapped mounts") from None
        raise
    finally:
        os.close(namespace)


def _namespace(mappings: Sequence[str]) -> int:
    """A descriptor of a user namespace with these mappings; the process that made it has ended."""
    ready, go = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    child = syscalls.fork()
    if not child:
        try:
            syscalls.die_with_parent(parent)
            syscalls.unshare(_CLONE_NEWUSER)
            os.write(ready[1], b"1")
            os.read(go[0], 1)
        finally:
            os._exit(0)
    try:
        os.close(ready[1])
        if not os.read(ready[0], 1):
            raise Failure("the kernel gives podrun no user namespace for the mapping", code=STEP_FAILED)
        for kind in ("uid", "gid"):
            lines = [_line(text, kind) for text in mappings if text.startswith(kind) or text[0].isdigit()]
            with open(f"/proc/{child}/{kind}_map", "w", encoding="ascii") as file:
                file.write("".join(lines) or "0 0 4294967295\n")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        for fd in (ready[0], *go):
            os.close(fd)


def _line(text: str, kind: str) -> str:
    there, here, count = text.removeprefix(f"{kind}:").split(":")
    return f"{there} {here} {count}\n"
