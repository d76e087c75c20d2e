"""Finds a command in a container's root as execvp(3) would, and says in words why the kernel would not execute it."""

from __future__ import annotations

import errno
import os
import stat

from podrun.errors import CANNOT_EXECUTE, NOT_FOUND, Failure
from podrun_hooks.support.rooted_tree import Elsewhere, plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from podrun_hooks.container.users import User
    from podrun_hooks.support.rooted_tree import Tree
    from podrun_hooks.support.userns import Range

#: <elf.h>: e_machine by uname(2)'s machine, and those that the same processor runs besides.
_MACHINES = {
    "x86_64": (62, 3),
    "aarch64": (183, 40),
    "riscv64": (243,),
    "ppc64le": (21,),
    "s390x": (22,),
    "armv7l": (40,),
    "i686": (3,),
}
_NAMES = {62: "x86_64", 3: "i386", 183: "arm64", 40: "arm", 243: "riscv64", 21: "ppc64", 22: "s390x", 8: "mips"}
_PT_INTERP = 3
_BINFMT = "/proc/sys/fs/binfmt_misc"


def find_command(
    tree: Tree,
    argv: Sequence[str],
    variables: Mapping[str, str],
    workdir: str,
    user: User,
    names: Sequence[str],
    base: Range | None = None,
) -> None:
    """Looks the command up as execvp(3) of ``user`` would, because both runtimes answer a missing one with a plain 1.

    ``names``: root's capabilities, with CAP_; ``base``: what the pod's ids 0 are for us. Raises Failure: NOT_FOUND, or
    CANNOT_EXECUTE for what is there but is no executable file, or not for this user.
    """
    name = argv[0]
    if "/" in name:
        candidates = [name if name.startswith("/") else f"{workdir}/{name}"]
    else:
        candidates = [f"{directory or workdir}/{name}" for directory in variables["PATH"].split(":")]
    refused = ""
    override = user.uid == 0 and "CAP_DAC_OVERRIDE" in names
    searcher = override or (user.uid == 0 and "CAP_DAC_READ_SEARCH" in names)
    who = user.seen_from_outside(base) if base else user

    def may_search(directory: os.stat_result) -> bool:
        return searcher or _may_execute(directory, who)

    # What execve(2) would say stands in brackets: scripts look for the words.
    denied, missing = os.strerror(errno.EACCES).lower(), os.strerror(errno.ENOENT).lower()
    for candidate in candidates:
        try:
            fd, _ = tree.find(candidate, may_search)
        except Elsewhere as elsewhere:
            if plain(elsewhere.path).startswith("/proc"):
                # /proc/self/exe is the runtime itself (CVE-2019-5736).
                raise Failure(f"{candidate} leads to {elsewhere.path}", code=CANNOT_EXECUTE) from None
            return
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise  # it may well be there
            if error.errno == errno.EACCES:
                refused = refused or f"{candidate} is out of reach for user {user.uid} ({denied})"
            continue
        try:
            why = _not_executable(fd, who, tree, override=override)
        finally:
            os.close(fd)
        if not why:
            return
        refused = refused or f"{candidate} {why}"
    if refused:
        raise Failure(refused, code=CANNOT_EXECUTE)
    hint = "" if "/" in name else f"PATH is {variables['PATH']!r}"
    raise Failure(f"{name!r} is not in the image ({missing})", code=NOT_FOUND, hint=hint)


def _not_executable(fd: int, user: User, tree: Tree, *, override: bool) -> str:
    """Why ``user`` cannot execute the file; "": nothing speaks against it."""
    about = os.fstat(fd)
    denied = os.strerror(errno.EACCES).lower()
    if not stat.S_ISREG(about.st_mode):
        return f"is {'a directory' if stat.S_ISDIR(about.st_mode) else 'not a file'} ({denied})"
    if not about.st_mode & 0o111:
        return f"is not executable ({denied})"
    if os.fstatvfs(fd).f_flag & os.ST_NOEXEC:
        return f"is in a mount that is noexec ({denied})"
    if override or _may_execute(about, user):
        return _refused(fd, tree)
    try:
        os.getxattr(f"/proc/self/fd/{fd}", "system.posix_acl_access")
    except OSError:
        return f"is not executable for this user ({denied})"
    return ""  # an access control list says more than the mode: the kernel decides


def _may_execute(about: os.stat_result, user: User) -> bool:
    """The mode's answer, for a file or for looking something up in a directory."""
    if about.st_uid == user.uid:
        return bool(about.st_mode & 0o100)
    if about.st_gid == user.gid or about.st_gid in user.groups:
        return bool(about.st_mode & 0o010)
    return bool(about.st_mode & 0o001)


def _refused(fd: int, tree: Tree) -> str:
    """What is wrong with a program or script (an O_PATH descriptor), for the words after its name; "": nothing is."""
    reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        start = os.read(reader, 4096)
    except OSError:
        return ""
    finally:
        os.close(reader)
    if start.startswith(b"#!"):
        return _script(start, tree)
    if start.startswith(b"\x7fELF"):
        return _program(start, tree)
    if not start:
        return "is empty"
    if _others():
        return ""
    return "is neither a program nor a script that begins with #! and its interpreter"


def _script(start: bytes, tree: Tree) -> str:
    line = start[2:256].partition(b"\n")[0]
    if line.endswith(b"\r"):
        word = line.strip().split()[0].decode(errors="replace") if line.strip() else ""
        return f"has lines that end in CRLF, as on Windows: its interpreter would be {word + chr(13)!r}"
    words = line.split()
    if not words:
        return "names no interpreter after #!"
    interpreter = os.fsdecode(words[0])
    return "" if _there(interpreter, tree) else f"is a script for {interpreter}, which is not in the image"


def _program(start: bytes, tree: Tree) -> str:
    bits, order = start[4:5], "big" if start[5:6] == b"\2" else "little"
    machine = _number(start, 18, 2, order)
    known = _MACHINES.get(os.uname().machine)
    if known and machine not in known:
        name = _NAMES.get(machine, f"machine {machine}")
        what = f"is a program for {name}, and this machine is {os.uname().machine}"
        return "" if _others() else what
    interpreter = _loader(start, bits == b"\2", order)
    if interpreter and not _there(interpreter, tree):
        return f"needs the loader {interpreter}, which is not in the image: it was built for another C library"
    return ""


def _loader(start: bytes, wide: bool, order: str) -> str:
    """PT_INTERP of the program headers (elf(5)); "" for a static program, or where the headers lie further behind."""
    at = _number(start, 32, 8, order) if wide else _number(start, 28, 4, order)
    size, count = _number(start, 54 if wide else 42, 2, order), _number(start, 56 if wide else 44, 2, order)
    for begin in range(at, at + size * min(count, 64), size or 1):
        if _number(start, begin, 4, order) == _PT_INTERP:
            where = _number(start, begin + (8 if wide else 4), 8 if wide else 4, order)
            length = _number(start, begin + (32 if wide else 16), 8 if wide else 4, order)
            if where + length <= len(start):
                return os.fsdecode(start[where : where + length].rstrip(b"\0"))
    return ""


def _number(data: bytes, at: int, size: int, order: str) -> int:
    return int.from_bytes(data[at : at + size], "big" if order == "big" else "little")


def _there(path: str, tree: Tree) -> bool:
    try:
        fd, _ = tree.find(path)
    except Elsewhere:
        return True
    except OSError:
        return False
    os.close(fd)
    return True


def _others() -> bool:
    """Whether the host has handlers of its own for other formats (binfmt_misc): those the kernel is left to judge."""
    try:
        return bool({*os.listdir(_BINFMT)} - {"register", "status"})
    except OSError:
        return False
