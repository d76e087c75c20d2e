"""The container's root: layers stacked by overlayfs, and the mounts over it.

The overlay is a detached mount, a descriptor that belongs to no mount namespace. podrun looks into it, makes mount
points and reads passwd through that descriptor; the runtime's private namespace attaches it. Nothing is ever mounted
where the host sees it, and when podrun dies the mount is gone.
"""

from __future__ import annotations

import errno
import os
import stat

from podrun.errors import CANNOT_CREATE, MALFORMED, WRONG_FILE, Failure
from podrun.hook import Facts
from podrun_hooks.support import syscalls
from podrun_hooks.support.rooted_tree import Bind, Elsewhere, Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from podrun_hooks.container.paths import Place

#: fsconfig(2) takes strings of up to 256 bytes, the NUL included.
_LONGEST = 255


# --- the overlay ---------------------------------------------------------------------------------------------------


def stack(place: Place, layers: Sequence[str], *, volatile: bool) -> int:
    """A detached overlay mount of ``layers`` (lowest first) and the place's upper layer; returns its descriptor.

    ``volatile`` spares the syncs of a writable layer that is removed anyway. Raises Failure with the kernel's words.
    """
    # A layer that occurs twice (old builders repeat the empty one) hides its lower self; overlayfs refuses it (ELOOP).
    lowest_last = list(dict.fromkeys(reversed(layers)))
    if not lowest_last:
        os.makedirs(f"{place.storage}/empty", exist_ok=True)
        lowest_last = [f"{place.storage}/empty"]
    opened: list[int] = []
    try:
        options: list[tuple[str, str | None]] = [("source", place.mark)]
        options += [("lowerdir+", _short(layer, opened)) for layer in lowest_last]
        options += [("upperdir", _short(place.upper, opened)), ("workdir", _short(place.work, opened))]
        if volatile:
            options.append(("volatile", None))
        try:
            return syscalls.fsmount("overlay", options)
        except OSError as error:
            # "lowerdir+" came with kernel 6.7; an unknown parameter is EINVAL, as much else is.
            if error.errno != errno.EINVAL or _knows_lowerdir_plus():
                raise
        return stack_in_one_string(place, lowest_last, volatile=volatile)
    except OSError as error:
        code = MALFORMED if error.errno == errno.ENOENT else CANNOT_CREATE
        raise Failure(f"overlayfs refuses the root file system: {error.strerror}", code=code) from error
    finally:
        for fd in opened:
            os.close(fd)


def _short(path: str, opened: list[int]) -> str:
    if len(os.fsencode(path)) <= _LONGEST:
        return path
    opened.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    return f"/proc/self/fd/{opened[-1]}"


def _knows_lowerdir_plus() -> bool:
    numbers = os.uname().release.split(".")
    return (int(numbers[0]), int(numbers[1].split("-")[0])) >= (6, 7)


def stack_in_one_string(place: Place, layers: Sequence[str], *, volatile: bool) -> int:
    """The same for kernels before 6.7 (``layers``: highest first): mount(2) in a forked child, its mount handed back.

    mount(2) cuts its options at a page, and a colon in a path means the next layer: in /proc/self/fd every layer's
    name is a small number, which is room for the 500 layers that overlayfs allows.
    """
    import _socket

    here, there = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    child = syscalls.fork()
    if not child:
        try:
            os.chdir("/proc/self/fd")
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
            # Opened in the new namespace: overlayfs refuses layers whose mount is in another one.
            fds = [os.open(path, os.O_PATH | os.O_DIRECTORY) for path in (*layers, place.upper, place.work)]
            *lower, upper, work = (str(fd) for fd in fds)
            data = f"lowerdir={':'.join(lower)},upperdir={upper},workdir={work}{',volatile' if volatile else ''}"
            syscalls.mount(place.mark, place.rootfs, "overlay", 0, data)
            fd = syscalls.open_tree(place.rootfs)
            there.sendmsg([b"0"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, "little"))])
        except OSError as error:
            there.send(str(error.errno).encode())
        finally:
            os._exit(0)
    there.close()
    words, rights, _, _ = here.recvmsg(64, _socket.CMSG_LEN(4), _socket.MSG_CMSG_CLOEXEC)
    here.close()
    os.waitpid(child, 0)
    if not rights:
        number = int(words or errno.EIO)
        raise OSError(number, os.strerror(number), "overlay")
    return int.from_bytes(rights[0][2][:4], "little")


# --- mounts -------------------------------------------------------------------------------------------------------


def make_system_directories(tree: Tree) -> None:
    """Makes sure that /proc, /sys and /dev are directories of the root itself.

    runc 1.1.5 follows an image's link at /dev on the host, and crun makes its nodes where it leads (tried): an image
    in which one of them is anything else is refused (MALFORMED).
    """
    for name in ("proc", "sys", "dev"):
        try:
            mode = os.stat(name, dir_fd=tree.root, follow_symlinks=False).st_mode
        except FileNotFoundError:
            os.mkdir(name, 0o755, dir_fd=tree.root)
            continue
        if not stat.S_ISDIR(mode):
            raise Failure(f"/{name} of the image is not a directory", code=MALFORMED, hint="no runtime is let near it")


def place_mounts(tree: Tree, mounts: Sequence[Facts]) -> list[Facts]:
    """Resolves the targets of ``mounts`` (CDI spelling) inside the tree, makes them, and returns OCI mounts.

    Outer targets come first, as docker orders them: an inner one would be hidden else. The last of two mounts at one
    target counts. Raises Failure: WRONG_FILE for a target that no mount may hide, CANNOT_CREATE, or STEP_FAILED for a
    source that does not exist.
    """
    latest = {plain(mount["containerPath"]): mount for mount in mounts}
    placed = []
    for target in sorted(latest, key=lambda path: path.count("/")):
        mount = latest[target]
        kind = mount.get("type") or "bind"
        source = mount.get("hostPath") or kind
        options = list(mount.get("options") or ())
        if target in ("/", "/proc", "/sys", "/dev") or target.startswith("/proc/"):
            raise Failure(f"nothing can be mounted at {target}", code=WRONG_FILE)
        is_bind = kind in ("bind", "none") or "bind" in options or "rbind" in options
        if mount.get("fill"):
            from podrun_hooks.storage import volumes

            volumes.fill(source, tree, target)
        directory = not is_bind or _is_directory(source)
        try:
            destination = tree.make(target, directory=directory)
        except Elsewhere as elsewhere:
            if plain(elsewhere.path).startswith("/proc"):
                raise Failure(f"{target} leads to {elsewhere.path} in the image", code=WRONG_FILE) from None
            destination = plain(elsewhere.path)
        if is_bind:
            tree.binds.append(Bind(destination, source, "ro" not in options and "rro" not in options))
        else:
            tree.made_by_runtime.append(destination)
        oci = {"destination": destination, "type": "bind" if is_bind else kind, "source": source}
        placed.append({**oci, "options": _restricted(options, is_bind, directory)})
    return placed


def _is_directory(source: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(source).st_mode)
    except OSError as error:
        raise Failure(f"{source}, which is to be mounted, cannot be used: {error.strerror}") from error


def plain(path: str) -> str:
    """An absolute path without empty parts and dots."""
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def _restricted(options: list[str], is_bind: bool, directory: bool) -> list[str]:
    """Adds nosuid and nodev unless asked otherwise; below a bind all is as restricted as its top (mount_setattr(2))."""
    given = [option for option in options if option not in ("suid", "dev")]
    given += [f"no{word}" for word in ("suid", "dev") if word not in options and f"no{word}" not in options]
    if not is_bind:
        return given
    if "bind" not in given and "rbind" not in given:
        given.append("rbind")
    if not any(word.endswith(("private", "shared", "slave", "unbindable")) for word in given):
        given.append("rprivate")
    # crun 1.8.1 opens what it restricts recursively as a directory; below a file there is nothing to restrict.
    if "rbind" in given and directory:
        given = [f"r{option}" if option in ("ro", "nosuid", "nodev", "noexec") else option for option in given]
    return given
