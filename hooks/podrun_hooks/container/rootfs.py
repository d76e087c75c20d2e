"""The container's root: layers stacked by overlayfs, and the tree of files that the container will see.

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
from podrun.record import NamedTuple

from .. import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .place import Place

#: fsconfig(2) takes strings of up to 256 bytes, the NUL included.
_LONGEST = 255
#: Symbolic links that a path may lead through, as many as the kernel allows (path_resolution(7)).
_LINKS = 40


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
            return linux.fsmount("overlay", options)
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
    child = os.fork()
    if not child:
        try:
            os.chdir("/proc/self/fd")
            linux.unshare(linux.CLONE_NEWNS)
            linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
            # Opened in the new namespace: overlayfs refuses layers whose mount is in another one.
            fds = [os.open(path, os.O_PATH | os.O_DIRECTORY) for path in (*layers, place.upper, place.work)]
            *lower, upper, work = (str(fd) for fd in fds)
            data = f"lowerdir={':'.join(lower)},upperdir={upper},workdir={work}{',volatile' if volatile else ''}"
            linux.mount(place.mark, place.rootfs, "overlay", 0, data)
            fd = linux.open_tree(place.rootfs)
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


# --- the tree ------------------------------------------------------------------------------------------------------


class Bind(NamedTuple):
    """A host file or directory that will be mounted at ``target`` (resolved: no symbolic link in it)."""

    target: str
    source: str
    writable: bool


class Elsewhere(Exception):  # no failure: the path leads where only the runtime will know what is there
    """A path leads into /proc, /sys, /dev or a mount that podrun does not make itself; ``path`` is resolved so far."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class Tree:
    """The file system as the container will see it: the root at a descriptor and the binds over it.

    Paths are resolved here, component by component: a symbolic link means what it means inside, and none leads out.
    """

    def __init__(self, root: int, made_by_runtime: Sequence[str] = ("/proc", "/sys", "/dev")) -> None:
        self.root = root
        self.binds: list[Bind] = []
        self.made_by_runtime = list(made_by_runtime)

    def find(self, path: str) -> tuple[int, str]:
        """An O_PATH descriptor and the resolved path of what ``path`` leads to; links are followed.

        Raises OSError (ENOENT, ENOTDIR, ELOOP) as open(2) would, and Elsewhere.
        """
        return self._walk(path, None)

    def make(self, path: str, *, directory: bool) -> str:
        """The resolved path of a mount point: what is missing of it is made (directories 0755, a file 0644).

        Raises Failure (CANNOT_CREATE) where it would have to be made in a read-only bind, or is of the other type;
        Elsewhere where the runtime makes it.
        """
        try:
            fd, resolved = self._walk(path, directory)
        except OSError as error:
            what = f"{path} cannot be made in the container: {error.strerror}"
            raise Failure(what, code=CANNOT_CREATE, hint=str(error.filename or "")) from error
        try:
            is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        finally:
            os.close(fd)
        if is_directory != directory:
            kinds = ("a file", "a directory")
            raise Failure(
                f"{path} is {kinds[is_directory]} in the image, but {kinds[directory]} is to be mounted there"
            )
        return resolved

    def read(self, path: str, limit: int = 1 << 20) -> bytes:
        """The first ``limit`` bytes of a regular file; b"" where there is none."""
        try:
            fd, _ = self.find(path)
        except (OSError, Elsewhere):
            return b""
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return b""
            reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.read(reader, limit)
            finally:
                os.close(reader)
        finally:
            os.close(fd)

    def _walk(self, path: str, make_directory: bool | None) -> tuple[int, str]:
        """Resolves ``path``; with ``make_directory`` not None what is missing is made, the last part of that type."""
        todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        names: list[str] = []
        fds = [os.dup(self.root)]
        links = 0
        try:
            while todo:
                name = todo.pop()
                if name == "..":
                    if names:
                        names.pop()
                        os.close(fds.pop())
                    continue
                here = "/" + "/".join([*names, name])
                if here in self.made_by_runtime:
                    raise Elsewhere("/".join([here, *reversed(todo)]))
                inner = None if make_directory is None else True
                fd = self._step(fds[-1], name, here, inner if todo else make_directory)
                mode = os.fstat(fd).st_mode
                if stat.S_ISLNK(mode):
                    links += 1
                    target = os.readlink("", dir_fd=fd)
                    os.close(fd)
                    if links > _LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                    todo += [part for part in reversed(target.split("/")) if part not in ("", ".")]
                    if target.startswith("/"):
                        while names:
                            names.pop()
                            os.close(fds.pop())
                    continue
                fds.append(fd)
                names.append(name)
                if todo and not stat.S_ISDIR(mode):
                    raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), here)
            return os.dup(fds[-1]), "/" + "/".join(names)
        finally:
            for fd in fds:
                os.close(fd)

    def _step(self, directory: int, name: str, here: str, make_directory: bool | None) -> int:
        """Opens one component; makes it when it is missing and ``make_directory`` says of which type."""
        for bind in self.binds:
            if bind.target == here:
                return os.open(bind.source, os.O_PATH | os.O_CLOEXEC)
        try:
            return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            if make_directory is None:
                raise
        parent = here.rpartition("/")[0] or "/"
        if not self._is_writable(parent):
            raise OSError(errno.EROFS, "it does not exist in a read-only mount", here)
        if make_directory:
            os.mkdir(name, 0o755, dir_fd=directory)
        else:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o644, dir_fd=directory))
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)

    def _is_writable(self, path: str) -> bool:
        """Whether the innermost bind that ``path`` is in may be written to; the writable layer may."""
        best = Bind("", "", True)
        for bind in self.binds:
            inside = path == bind.target or path.startswith(bind.target + "/")
            if inside and len(bind.target) >= len(best.target):
                best = bind
        return best.writable


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
    latest = {_plain(mount["containerPath"]): mount for mount in mounts}
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
            from ..storage import volumes

            volumes.fill(source, tree, target)
        directory = not is_bind or _is_directory(source)
        try:
            destination = tree.make(target, directory=directory)
        except Elsewhere as elsewhere:
            if _plain(elsewhere.path).startswith("/proc"):
                raise Failure(f"{target} leads to {elsewhere.path} in the image", code=WRONG_FILE) from None
            destination = _plain(elsewhere.path)
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


def _plain(path: str) -> str:
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
