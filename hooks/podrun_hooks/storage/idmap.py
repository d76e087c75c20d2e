"""Idmapped mounts: maps file owners by a user namespace that exists only for its mapping (mount_setattr(2))."""

from __future__ import annotations

import errno
import os

from podrun.errors import UNAVAILABLE, Failure
from podrun_hooks.support import syscalls, userns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def apply(tree: int, mappings: Sequence[str], path: str) -> None:
    """Maps owners on the detached mount ``tree``. ``mappings``: "[uid:|gid:]SOURCE:POD:COUNT", without a prefix both.

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
    """A descriptor of a user namespace with these mappings."""
    maps = []
    for kind in ("uid", "gid"):
        lines = [_line(text, kind) for text in mappings if text.startswith(kind) or text[0].isdecimal()]
        maps.append("".join(lines) or "0 0 4294967295\n")
    return userns.opened(*maps)


def _line(text: str, kind: str) -> str:
    there, here, count = text.removeprefix(f"{kind}:").split(":")
    return f"{there} {here} {count}\n"
