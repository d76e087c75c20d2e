"""The container's root: layers stacked by overlayfs, and the directories that the runtime mounts over.

The overlay is a detached mount, a descriptor that belongs to no mount namespace. podrun looks into it, makes mount
points and reads passwd through that descriptor; the runtime's private namespace attaches it. Nothing is ever mounted
where the host sees it, and when podrun dies the mount is gone.
"""

from __future__ import annotations

import errno
import os
import stat

from podrun.errors import CANNOT_CREATE, MALFORMED, UNAVAILABLE, Failure
from podrun_hooks.container import paths
from podrun_hooks.support import syscalls, userns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from podrun_hooks.container.paths import Place
    from podrun_hooks.support.rooted_tree import Tree
    from podrun_hooks.support.userns import Mapping

#: fsconfig(2) takes strings of up to 256 bytes, the NUL included.
_LONGEST = 255


# --- the overlay ---------------------------------------------------------------------------------------------------


def own_top(place: Place, layers: Sequence[str]) -> None:
    """Gives the writable layer the owner and mode that the layers give "/": the merged root shows the upper one's.

    A layer without an entry for "/" has the default ones, so the uppermost layer with others decides.
    """
    for layer in reversed(layers):
        try:
            about = os.stat(layer)
        except FileNotFoundError:
            continue  # stack() says which one is missing
        mode = stat.S_IMODE(about.st_mode)
        if (mode, about.st_uid, about.st_gid) != (0o755, 0, 0):
            os.chown(place.upper, about.st_uid, about.st_gid)
            os.chmod(place.upper, mode)
            return


def stack(place: Place, layers: Sequence[str], *, volatile: bool, mapping: Mapping | None = None) -> int:
    """A detached overlay mount of ``layers`` (lowest first) and the place's upper layer; returns its descriptor.

    ``volatile`` skips the syncs of a writable layer that is removed anyway. With a ``mapping`` every layer is mounted
    with the owners of that user namespace first; what is on the disk keeps its owners. Raises Failure with the kernel's
    message.
    """
    # A layer that occurs twice (old builders repeat the empty one) hides its lower self; overlayfs refuses it (ELOOP).
    lowest_last = list(dict.fromkeys(reversed(layers)))
    if not lowest_last:
        os.makedirs(f"{place.storage}/empty", exist_ok=True)
        lowest_last = [f"{place.storage}/empty"]
    opened: list[int] = []
    try:
        options: list[tuple[str, str | None]] = [("source", place.mark)]
        options += [("lowerdir+", path) for path in _lower(lowest_last, opened, mapping)]
        options += [(f"{kind}dir", path) for kind, path in _writable(place, opened, mapping)]
        if volatile:
            options.append(("volatile", None))
        if _release() < (6, 7):
            # Such a kernel writes a line into its log each time it is asked for "lowerdir+".
            with userns.AsRootOf(mapping):
                return stack_in_one_string(place, lowest_last, volatile=volatile, trees=opened if mapping else ())
        try:
            # overlayfs creates files as whoever mounts it, the first ones right away in its work directory.
            with userns.AsRootOf(mapping):
                return syscalls.fsmount("overlay", options)
        except OSError as error:
            # "lowerdir+" came with kernel 6.7, layers that are detached mounts with 6.15; an unknown parameter is
            # EINVAL, as much else is.
            if error.errno != errno.EINVAL or _release() >= ((6, 15) if mapping else (6, 7)):
                raise
        with userns.AsRootOf(mapping):
            return stack_in_one_string(place, lowest_last, volatile=volatile, trees=opened if mapping else ())
    except OSError as error:
        if volatile and not mapping and _to_memory(place):
            return stack(place, layers, volatile=volatile)
        code = MALFORMED if error.errno == errno.ENOENT else CANNOT_CREATE
        hint = _on_overlay(place, volatile=volatile)
        raise Failure(f"overlayfs refuses the root file system: {error.strerror}", code=code, hint=hint) from error
    finally:
        for fd in opened:
            os.close(fd)


def _to_memory(place: Place) -> bool:
    """Moves a writable layer that overlayfs does not take into the run directory, if that is in memory."""
    on_overlay = not os.path.islink(place.upper) and type_of(place.storage) == "overlay"
    if on_overlay and type_of(place.bundle) == "tmpfs":
        paths.move_to_memory(place)
        return True
    return False


def _on_overlay(place: Place, *, volatile: bool) -> str:
    """The hint for a writable layer that would lie on an overlay itself, which overlayfs refuses; else ""."""
    if type_of(place.storage) != "overlay":
        return ""
    run = os.path.dirname(place.runtime)
    memory = f"; mount -t tmpfs tmpfs {run} has it in memory" if volatile else ", as persist = true needs it"
    return (
        f"{place.storage} lies on an overlay, as in a container or a live system: "
        f"--root (PODRUN_ROOT) on a disk, a volume or a tmpfs works{memory}"
    )


def type_of(path: str) -> str:
    """The type of the file system that a path is on: "ext4", "overlay"."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        rows = [line.split() for line in file]
    path = os.path.realpath(path)
    found = [row for row in rows if path == row[4] or path.startswith(f"{row[4].rstrip('/')}/")]
    best = max(found, key=lambda row: len(row[4]), default=None)
    return best[best.index("-") + 1] if best else ""


def _short(path: str, opened: list[int]) -> str:
    if len(os.fsencode(path)) <= _LONGEST:
        return path
    opened.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    return f"/proc/self/fd/{opened[-1]}"


def _lower(layers: Sequence[str], opened: list[int], mapping: Mapping | None) -> list[str]:
    """Paths of the layers for overlayfs."""
    if not mapping:
        return [_short(layer, opened) for layer in layers]
    for layer in layers:
        opened.append(_mapped(layer, mapping))
    return [f"/proc/self/fd/{fd}" for fd in opened]


def _writable(place: Place, opened: list[int], mapping: Mapping | None) -> list[tuple[str, str]]:
    """The paths of the writable layer and of the work directory, which have to be on one mount."""
    if not mapping:
        return [("upper", _short(place.upper, opened)), ("work", _short(place.work, opened))]
    opened.append(_mapped(place.storage, mapping))
    return [(name, f"/proc/self/fd/{opened[-1]}/{name}") for name in ("upper", "work")]


def _mapped(path: str, mapping: Mapping) -> int:
    try:
        return userns.idmapped(path, mapping.namespace)
    except OSError as error:
        if error.errno not in userns.NOT_MAPPED:
            raise
        what = f"the file system of {path} has no idmapped mounts"
        raise Failure(what, code=UNAVAILABLE, hint='userns = "host", or $PODRUN_ROOT on ext4, xfs or btrfs') from None


def _release() -> tuple[int, int]:
    numbers = os.uname().release.split(".")
    return int(numbers[0]), int(numbers[1].split("-")[0])


def stack_in_one_string(place: Place, layers: Sequence[str], *, volatile: bool, trees: Sequence[int] = ()) -> int:
    """The same for older kernels (``layers``: highest first): mount(2) in a forked child, its mount handed back.

    mount(2) cuts its options at a page, and a colon in a path means the next layer: in /proc/self/fd every layer's
    name is a small number, which is room for the 500 layers that overlayfs allows. ``trees``: detached mounts of the
    layers, and of the directory with the writable one, to be used instead.
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
            if trees:
                *below, writable = _attached(place.rootfs, trees)
                fds = [os.open(path, os.O_PATH | os.O_DIRECTORY) for path in below]
                fds += [os.open(f"{writable}/{name}", os.O_PATH | os.O_DIRECTORY) for name in ("upper", "work")]
            else:
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


def _attached(where: str, trees: Sequence[int]) -> list[str]:
    """Attaches detached mounts in memory over ``where``; returns their places."""
    syscalls.mount("tmpfs", where, "tmpfs", 0, "mode=0700")
    places = [f"{where}/{number}" for number in range(len(trees))]
    for path, tree in zip(places, trees, strict=True):
        os.mkdir(path)
        syscalls.move_mount(tree, path)
    return places


# --- the system directories ----------------------------------------------------------------------------------------


def make_system_directories(tree: Tree) -> list[int]:
    """Makes sure that /proc, /sys and /dev are directories of the root itself; returns descriptors of them.

    runc 1.1.5 follows an image's link at /dev on the host, and crun makes its nodes where it leads (tried): an image
    in which one of them is anything else is refused (MALFORMED). As long as the descriptors are open, overlayfs keeps
    to these directories, whatever somebody does to a layer that is a directory of the host.
    """
    fds: list[int] = []
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        for name in ("proc", "sys", "dev"):
            try:
                fds.append(os.open(name, flags, dir_fd=tree.root))
            except FileNotFoundError:
                os.mkdir(name, 0o755, dir_fd=tree.root)
                fds.append(os.open(name, flags, dir_fd=tree.root))
    except NotADirectoryError:
        _close(fds)
        raise Failure(
            f"/{name} of the image is not a directory", code=MALFORMED, hint="no runtime is let near it"
        ) from None
    except BaseException:
        _close(fds)
        raise
    return fds


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
