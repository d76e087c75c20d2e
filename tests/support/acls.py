"""Access control lists that let a user write who is not the owner: POSIX (acl(5)) and NFSv4 (RFC 8881, 6.2)."""

from __future__ import annotations

import os
import struct
from pathlib import Path

BOB = 1234


def acl(path: Path) -> None:
    """Lets bob write by an access control list (acl(5), the kernel's form of it), with root as the group."""
    user_obj, user, group_obj, mask, other, nobody = 1, 2, 4, 16, 32, 0xFFFFFFFF
    entries = [(user_obj, 6, nobody), (user, 6, BOB), (group_obj, 4, nobody), (mask, 6, nobody), (other, 4, nobody)]
    os.setxattr(
        path, "system.posix_acl_access", struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)
    )


def nfs4(*entries: tuple[int, int, str]) -> bytes:
    """A list as the kernel's client hands it out: (0 allow, 1 deny; mask; who)."""
    content = struct.pack(">I", len(entries))
    for kind, mask, who in entries:
        name = who.encode()
        content += struct.pack(">IIII", kind, 0, mask, len(name)) + name.ljust(-(-len(name) // 4) * 4, b"\0")
    return content
