"""Named volumes: directories at <root>/volumes/NAME/data that outlive pods, filled from the image at first use."""

from __future__ import annotations

import fcntl
import os

from podrun import jsontext
from podrun.errors import STEP_FAILED, Failure
from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from podrun_hooks.support.userns import Mapping


#: Behind the name of a volume that is being removed.
_GONE = ".gone"


class About(NamedTuple):
    """What ``podrun volume create`` was told of a volume."""

    labels: dict[str, str]
    #: Docker's type, device and o: what is mounted instead of the volume's own directory; {} is the rule.
    options: dict[str, str]
    #: Seconds since 1970.
    created: float


def path_of(root: str, name: str) -> str:
    """The directory with a volume's own content."""
    return f"{root}/volumes/{name}/data"


def content_of(root: str, name: str) -> str:
    """The directory with what a volume shows: its own, or the one of the host that it stands for."""
    options = about(root, name).options
    return options["device"] if options and options["type"] != "tmpfs" else path_of(root, name)


def about(root: str, name: str) -> About:
    """What is known of a volume."""
    place = f"{root}/volumes/{name}"
    try:
        with open(f"{place}/about", "rb") as file:
            told = jsontext.loads(file.read().decode())
        return About(told["labels"], told["options"], told["created"])
    except FileNotFoundError:
        pass
    try:
        return About({}, {}, os.stat(place).st_mtime)
    except FileNotFoundError:
        return About({}, {}, 0.0)


def make(root: str, name: str, told: About) -> None:
    """Creates a volume, described by ``told``: first its description, because a container may use it at once."""
    place = f"{root}/volumes/{name}"
    os.makedirs(f"{root}/volumes", mode=0o700, exist_ok=True)
    os.makedirs(place, mode=0o755, exist_ok=True)
    from podrun import atomic

    atomic.replace(f"{place}/about", jsontext.dumps(told._asdict()), sync=True)
    provide(root, name, fill=not told.options)


def _mark(place: str) -> str:
    """The file that exists until a container has used the volume."""
    return f"{os.path.dirname(place)}/new"


def provide(root: str, name: str, *, fill: bool = True) -> bool:
    """Creates a volume (0755) unless it exists. True if it is still to be filled, which ``fill`` = False prevents."""
    place = path_of(root, name)
    # 0700: no user of the host may run setuid programs that a payload's root creates in a volume. Mounts do not need
    # access by this path.
    os.makedirs(f"{root}/volumes", mode=0o700, exist_ok=True)
    os.makedirs(os.path.dirname(place), mode=0o755, exist_ok=True)
    if not os.path.isdir(place):
        with _Locked(place):
            # Create the mark first: a volume without it counts as used and is never filled.
            if fill and not os.path.isdir(place):
                os.close(os.open(_mark(place), os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            try:
                os.mkdir(place, 0o755)
                os.chmod(place, 0o755)
            except FileExistsError:
                pass
    if not fill and os.path.exists(_mark(place)):
        with _Locked(place):
            _used(place)
    return os.path.exists(_mark(place))


def fill(place: str, tree: Any, target: str, mapping: Mapping | None = None) -> None:
    """Copies what the image has at ``target`` into the new volume at ``place``, as docker does; owner and mode, too.

    ``tree`` is the container's Tree, ``mapping`` the user namespace whose owners it shows. Nothing happens when the
    volume has been used or has something in it. The copy takes the volume's place in one step: one that was cut short
    is made again.
    """
    with _Locked(place):
        if not os.path.exists(_mark(place)):
            return
        found = _directory(tree, target) if not os.listdir(place) else -1
        if found >= 0:
            try:
                copy_tree(found, place, mapping)
            finally:
                os.close(found)
        _used(place)


def _directory(tree: Any, target: str) -> int:
    """A descriptor of the image's directory at ``target``; -1 when it has none."""
    from podrun_hooks.support.rooted_tree import Elsewhere

    try:
        fd, _ = tree.find(target)
    except (OSError, Elsewhere):
        return -1
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError:
        return -1
    finally:
        os.close(fd)


def copy_tree(source: int, place: str, mapping: Mapping | None) -> None:
    """Copies the directory at a descriptor, owners and all, to ``place``, which appears when it is whole."""
    from podrun_hooks.support import syscalls
    from podrun_hooks.support.rooted_tree import clear
    from podrun_hooks.support.subprocesses import find, run

    copy = f"{os.path.dirname(place)}/copy"
    clear(copy)
    program = find("cp", "coreutils")
    argv = [program, "-aT", "--reflink=auto", f"/proc/self/fd/{source}/."]
    if mapping:
        from podrun_hooks.support import userns

        # As the pod's root, to which both the image and the volume show the owners that they have on the disk.
        there = userns.idmapped(os.path.dirname(place), mapping.namespace)
        try:
            ended = run(
                [*argv, f"/proc/self/fd/{there}/copy"],
                keep=[source, there],
                before=lambda: userns.become_root(mapping.namespace),
            )
        finally:
            os.close(there)
    else:
        ended = run([*argv, copy], keep=[source])
    if ended.status:
        words = (ended.errors or "cp failed").splitlines()[0]
        raise Failure(f"the volume cannot be filled from the image: {words}", code=STEP_FAILED)
    # After a power cut a file system may have the rename and not what was written before it.
    syscalls.syncfs(copy)
    os.rename(copy, place)


def put(root: str, name: str, write: Callable[[str], None]) -> None:
    """Makes a volume, or fills an empty one, with what ``write`` writes into the directory that it is given.

    It is visible when it is whole: a kill, a power cut or an exception of ``write`` leaves the volume as it was.
    """
    from podrun_hooks.support import syscalls
    from podrun_hooks.support.rooted_tree import clear

    place = path_of(root, name)
    copy = f"{os.path.dirname(place)}/copy"
    os.makedirs(f"{root}/volumes", mode=0o700, exist_ok=True)
    os.makedirs(os.path.dirname(place), mode=0o755, exist_ok=True)
    with _Locked(place):
        clear(copy)
        os.mkdir(copy, 0o755)
        try:
            os.chmod(copy, 0o755)
            write(copy)
            syscalls.syncfs(copy)
            os.rename(copy, place)
        except BaseException:
            clear(copy)
            if not os.path.isdir(place):
                os.rmdir(os.path.dirname(place))
            raise
        # What an image has is not copied over it.
        _used(place)


def _used(place: str) -> None:
    try:
        os.unlink(_mark(place))
    except FileNotFoundError:
        pass


class _Locked:
    """The lock of one volume, for filling it once."""

    def __init__(self, place: str) -> None:
        self.path = os.path.dirname(place)

    def __enter__(self) -> None:
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


# --- for people ----------------------------------------------------------------------------------------------------


def names(root: str) -> list[str]:
    """The names of all volumes, sorted."""
    try:
        found = os.listdir(f"{root}/volumes")
    except FileNotFoundError:
        return []
    return sorted(name for name in found if not name.startswith(".") and os.path.isdir(path_of(root, name)))


def remove(root: str, name: str) -> None:
    """Removes a volume with its content. Raises FileNotFoundError. The caller has checked that no pod uses it."""
    from podrun_hooks.support.rooted_tree import clear

    # Gone in one step; what a kill leaves behind is removed by the next removal, or by gc.
    gone = f"{root}/volumes/.{name}{_GONE}"
    with _Removing(root):
        clear(gone)
        os.rename(f"{root}/volumes/{name}", gone)
        clear(gone)


def collect(root: str, *, only_look: bool) -> list[str]:
    """Removes what killed removals have left of volumes, or with ``only_look`` looks for it; returns names."""
    from podrun_hooks.support.rooted_tree import clear

    try:
        removing = _Removing(root)
    except FileNotFoundError:
        return []
    with removing:
        found = [name for name in os.listdir(f"{root}/volumes") if name[0] == "." and name.endswith(_GONE)]
        for name in found if not only_look else ():
            clear(f"{root}/volumes/{name}")
    return [f"volume {name[1 : -len(_GONE)]}, removed by half" for name in sorted(found)]


class _Removing:
    """The lock of those who remove volumes."""

    def __init__(self, root: str) -> None:
        self.fd = os.open(f"{root}/volumes", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> None:
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
