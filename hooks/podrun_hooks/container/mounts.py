"""The mounts over the container's root: podrun makes each of them itself, at a target that it has resolved once.

A path that an image, another container or a user can change is never walked twice. Each mount is made detached, its
target is resolved to a descriptor, and the two meet in the runtime's private mount namespace (move_mount(2)) before the
runtime runs: to the runtime they are part of the root. It mounts only what lies in its own fresh /dev, /proc and /sys,
and what is to get mounts from the host later on (crun 1.8.1 makes all that is below the root private).
"""

from __future__ import annotations

import os
import stat

from podrun.errors import UNAVAILABLE, WRONG_FILE, Failure, code_of
from podrun.hook import Facts
from podrun.record import NamedTuple
from podrun_hooks.container import rootfs
from podrun_hooks.container.options import is_anonymous, named_twice
from podrun_hooks.support import syscalls, userns
from podrun_hooks.support.rooted_tree import Elsewhere, Tree, plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from typing import Any

    from podrun.hook import Step
    from podrun_hooks.container.paths import Place
    from podrun_hooks.support.userns import Mapping

#: Where catatonit is mounted with ``init = true``: below /dev, which is fresh in every container.
INIT = "/dev/init"
#: The directory with the socket of ``ready = { notify = true }`` as the container sees it.
NOTIFY = "/dev/podrun"

#: Where a container looks for its time zone (tzset(3)).
LOCALTIME = "/etc/localtime"
_ZONES = "/usr/share/zoneinfo"

#: What the runtimes make in /dev themselves; a mount in its place would be taken for it.
_OF_THE_RUNTIME = frozenset([
    "null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts", "fd", "stdin", "stdout", "stderr",
    "core",
])  # fmt: skip
#: What may be mounted over in /sys: file systems that have their place there, and devices that people hand in.
_IN_SYS = (
    "/sys/fs/cgroup", "/sys/fs/bpf", "/sys/fs/fuse", "/sys/fs/pstore", "/sys/kernel/config", "/sys/kernel/debug",
    "/sys/kernel/tracing", "/sys/kernel/security", "/sys/class", "/sys/devices", "/sys/bus",
)  # fmt: skip
#: The files of /proc that lxcfs replaces; the same list is in runc (checkProcMount() in libcontainer).
_IN_PROC = (
    "/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime", "/proc/loadavg",
    "/proc/slabinfo",
)  # fmt: skip
#: A link may lead to it: many images have /run/shm -> /dev/shm.
_BEHIND_LINKS = ("/dev/shm",)
#: File systems that show the namespaces of whoever mounts them: the runtime does, and only where they belong.
_OF_NAMESPACES = {"mqueue": "/dev/mqueue", "cgroup": "/sys/fs/cgroup", "cgroup2": "/sys/fs/cgroup"}
_NOWHERE = ("proc", "sysfs", "devpts", "devtmpfs", "securityfs", "selinuxfs", "debugfs", "tracefs")

# <linux/mount.h>: the attributes of mount_setattr(2) that are words of mount(8), to set and to clear.
_SET = {
    "ro": syscalls.MOUNT_ATTR_RDONLY,
    "rro": syscalls.MOUNT_ATTR_RDONLY,
    "nosuid": syscalls.MOUNT_ATTR_NOSUID,
    "nodev": syscalls.MOUNT_ATTR_NODEV,
    "noexec": syscalls.MOUNT_ATTR_NOEXEC,
    "noatime": syscalls.MOUNT_ATTR_NOATIME,
    "strictatime": syscalls.MOUNT_ATTR_STRICTATIME,
    "nodiratime": syscalls.MOUNT_ATTR_NODIRATIME,
    "nosymfollow": syscalls.MOUNT_ATTR_NOSYMFOLLOW,
}
_CLEAR = {
    "suid": syscalls.MOUNT_ATTR_NOSUID,
    "dev": syscalls.MOUNT_ATTR_NODEV,
    "exec": syscalls.MOUNT_ATTR_NOEXEC,
    "diratime": syscalls.MOUNT_ATTR_NODIRATIME,
    "symfollow": syscalls.MOUNT_ATTR_NOSYMFOLLOW,
}
_PROPAGATION = {
    "private": syscalls.MS_PRIVATE,
    "slave": syscalls.MS_SLAVE,
    "shared": syscalls.MS_SHARED,
    # An unbindable mount would not get into the runtime's copy of the root; inside, private comes to the same.
    "unbindable": syscalls.MS_PRIVATE,
}
_WORDS = {
    *_SET, *_CLEAR, *_PROPAGATION, *(f"r{word}" for word in _PROPAGATION), "bind", "rbind", "rw", "rrw", "atime",
    "relatime", "rnosuid", "rnodev", "rnoexec", "defaults",
}  # fmt: skip


#: Files that every pod gets. Where one of them leads into a read-only mount in which it does not exist, the pod does
#: without: /etc of the host, say, with its link to a resolver that is not in the container.
_GENERATED = ("/etc/hosts", "/etc/resolv.conf", "/etc/hostname")


def _can_be_made(tree: Tree, target: str) -> bool:
    try:
        fd, _, _ = tree.make(target, directory=False)
    except Elsewhere:
        return True
    except Failure:
        return False
    os.close(fd)
    return True


# --- which mounts a container has ------------------------------------------------------------------------------------


def wanted(step: Step, facts: Facts, image: Facts, tree: Tree, place: Place, mapping: Mapping | None = None) -> Mounts:
    """The mounts that image, facts and options ask for, detached; makes their targets in ``tree``. Raises Failure."""
    options = step.options
    asked = [*image.get("mounts", ()), *facts.get("mounts", ()), *_own_mounts(options, step.pod.root)]
    anonymous = filter(is_anonymous, options.volumes)
    if volumes := dict.fromkeys([*((image.get("config") or {}).get("Volumes") or ()), *anonymous]):
        taken = {plain(mount["containerPath"]) for mount in asked}
        asked += _anonymous_volumes(volumes, taken, tree, place, mapping, options.read_only)
    if options.init:
        from podrun_hooks.support.subprocesses import find

        asked.append({"hostPath": find("catatonit", "catatonit"), "containerPath": INIT, "options": ["bind", "ro"]})
    if options.ready and options.ready.notify:
        asked.append({"hostPath": place.notify, "containerPath": NOTIFY, "options": ["bind", "ro"]})
    if options.tz:
        asked.append({"hostPath": zone_file(options.tz), "containerPath": LOCALTIME, "options": ["bind", "ro"]})
    if options.ipc == "host":
        # The host's POSIX shared memory and message queues belong to its IPC namespace (shm_overview(7)).
        asked.append({"hostPath": "/dev/shm", "containerPath": "/dev/shm", "options": ["bind"]})
    if any(mount.get("own") for mount in asked):
        from podrun_hooks.container import users

        config = image.get("config") or {}
        user = users.resolve(options.user or config.get("User") or "", tree, of_image=not options.user)
        asked = [{**mount, "own": [user.uid, user.gid]} if mount.get("own") else mount for mount in asked]
    return make(tree, asked, place, mapping)


def _anonymous_volumes(
    volumes: Iterable[str],
    taken: Collection[str],
    tree: Tree,
    place: Place,
    mapping: Mapping | None,
    read_only: bool,
) -> list[Facts]:
    """What the image's VOLUME means: a directory of the host's disk, which is no overlay and goes with the container.

    As docker does, what the image has there is copied. Below a read-only root an empty one is memory, as in podman.
    """
    asked: list[Facts] = []
    for path in map(plain, volumes):
        if path in taken or path == "/" or path.split("/")[1] in ("proc", "sys", "dev"):
            continue
        try:
            fd, _ = tree.find(path)
        except Elsewhere:
            continue  # a link of the image's leads into /dev, /proc or /sys: nothing is mounted there
        except OSError:
            fd = -1
        try:
            about = os.fstat(fd) if fd >= 0 else None
            if about and not stat.S_ISDIR(about.st_mode):
                continue
            if not read_only or (about and os.listdir(f"/proc/self/fd/{fd}")):
                asked.append({"hostPath": _kept(place, path, fd, mapping), "containerPath": path, "options": ["bind"]})
                continue
        finally:
            if fd >= 0:
                os.close(fd)
        words = [f"mode={stat.S_IMODE(about.st_mode):o}"] if about else []
        words += [f"uid={about.st_uid}", f"gid={about.st_gid}"] if about and not mapping else []
        asked.append({"hostPath": "tmpfs", "containerPath": path, "type": "tmpfs", "options": words})
    return asked


def _kept(place: Place, path: str, fd: int, mapping: Mapping | None) -> str:
    """The directory of an anonymous volume, filled from the image's at descriptor ``fd`` (-1: there is none)."""
    from _blake2 import blake2b

    # A container that persists has it from its last start.
    directory = f"{place.volumes}/{blake2b(path.encode(errors='surrogateescape'), digest_size=8).hexdigest()}"
    data = f"{directory}/data"
    if not os.path.isdir(data):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        if fd < 0:
            os.mkdir(data, 0o755)
        else:
            from podrun_hooks.storage import volumes as named

            named.copy_tree(fd, data, mapping)
    return data


def zone_file(zone: str) -> str:
    """The host's file of a time zone ("Europe/Berlin"), or of its own ("local"). Raises Failure (UNAVAILABLE)."""
    path = LOCALTIME if zone == "local" else f"{_ZONES}/{zone}"
    if not os.path.isfile(path):
        raise Failure(f"tz: the host has no {path}", code=UNAVAILABLE, hint="apt install tzdata")
    return os.path.realpath(path)


def _own_mounts(options: Any, root: str) -> list[Facts]:
    """The mounts that the container's own options ask for; a named volume is made when it is missing."""
    mounts: list[Facts] = []
    if options.volumes:
        if twice := named_twice(options):
            raise Failure(f"{twice} has two mounts", code=WRONG_FILE, hint="leave out one of volumes and tmpfs")
        from podrun_hooks.storage.docker_spelling import docker_source, from_docker, provide

        for text in dict.fromkeys(options.volumes):
            if is_anonymous(text):
                continue
            fill = "nocopy" not in text.rpartition(":")[2].split(",")
            new = provide(docker_source(text), root, fill=fill)
            mounts.append(from_docker(text, root, fill=new))
    for text in dict.fromkeys(options.tmpfs):
        target, _, given = text.partition(":")
        words = ["noexec", *(word for word in given.split(",") if word)]
        words = [word for word in words if not (word == "noexec" and "exec" in words) and word != "exec"]
        mounts.append({"hostPath": "tmpfs", "containerPath": target, "type": "tmpfs", "options": words})
    return mounts


# --- making them -----------------------------------------------------------------------------------------------------


class Mount(NamedTuple):
    """One mount: what, where, and by whom."""

    #: A descriptor of the detached mount.
    tree: int
    #: A descriptor of the directory or file that it goes over; -1: the runtime mounts it, out of the stage.
    target: int
    directory: bool


class Mounts:
    """The mounts of one container until they are attached; ``oci`` are those that are left to the runtime."""

    def __init__(self, place: Place, mapping: Mapping | None) -> None:
        self.place = place
        self.mapping = mapping
        #: Where the root and the stage are attached. In a user namespace the runtime is not the host's root any more,
        #: and podrun's directories are closed to it: memory over a public directory, in its mount namespace alone.
        top = _public(place) if mapping else ""
        self.root, self.stage = (f"{top}/root", top) if top else (place.rootfs, place.stage)
        self.all: list[Mount] = []
        self.oci: list[Facts] = []
        #: Where there is a mount of the pod's.
        self.taken: set[str] = set()
        #: Descriptors that are to stay open until the runtime has mounted /proc, /sys and /dev.
        self.kept: list[int] = []

    def staged(self) -> list[tuple[str, Mount]]:
        """The mounts that the runtime takes out of the stage, with their places in it."""
        return [(f"{self.stage}/{number}", mount) for number, mount in enumerate(self.all) if mount.target < 0]

    def attach(self, root: int) -> None:
        """Attaches the root and all mounts. In a forked child with a private mount namespace."""
        staged = self.staged()
        if staged or self.mapping:
            mode = "mode=0755" if self.mapping else "mode=0700"
            syscalls.mount("tmpfs", self.stage, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, mode)
        if self.mapping:
            os.mkdir(self.root, 0o755)
        syscalls.move_mount(root, self.root)
        for path, mount in staged:
            if mount.directory:
                os.mkdir(path, 0o700)
            else:
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            syscalls.move_mount(mount.tree, path)
        for mount in self.all:
            if mount.target >= 0:
                syscalls.move_mount(mount.tree, mount.target)

    def close(self) -> None:
        """Closes the descriptors; what is not attached is gone then."""
        for fd in (*self.kept, *(fd for mount in self.all for fd in (mount.tree, mount.target))):
            if fd >= 0:
                os.close(fd)
        self.all.clear()
        self.kept.clear()


def make(tree: Tree, wanted: Sequence[Facts], place: Place, mapping: Mapping | None = None) -> Mounts:
    """Makes the mounts ``wanted`` (CDI spelling), detached, and their targets in ``tree``.

    Outer targets come first, as docker orders them: an inner one would be hidden else. The last of two mounts at one
    target counts. Raises Failure: WRONG_FILE for a target that no mount may hide, CANNOT_CREATE, or STEP_FAILED for a
    source that does not exist. With a ``mapping`` what is mounted has the owners of that user namespace; UNAVAILABLE
    where it cannot have them.
    """
    mounts = Mounts(place, mapping)
    with userns.AsRootOf(mapping):
        mounts.kept = rootfs.make_system_directories(tree)
    latest = {plain(mount["containerPath"]): mount for mount in wanted}
    try:
        for target in sorted(latest, key=lambda path: path.count("/")):
            if target in _GENERATED and not _can_be_made(tree, target):
                continue
            _add(mounts, tree, target, latest[target])
        if mounts.staged() and not mapping:
            os.makedirs(place.stage, mode=0o700, exist_ok=True)
    except BaseException:
        mounts.close()
        raise
    return mounts


def _public(place: Place) -> str:
    """A directory that everybody can enter, and that has nothing of podrun's in it."""
    for path in ("/mnt", "/media", "/srv", "/opt"):
        inside = any(f"{own}/".startswith(f"{path}/") for own in (place.bundle, place.storage, place.runtime))
        if not inside and os.path.isdir(path) and not os.path.islink(path) and os.stat(path).st_mode & 0o001:
            return path
    what = "there is no directory such as /mnt that everybody can enter"
    raise Failure(what, code=UNAVAILABLE, hint="mkdir -m 755 /mnt")


def _add(mounts: Mounts, tree: Tree, target: str, mount: Facts) -> None:
    kind = mount.get("type") or "bind"
    source = mount.get("hostPath") or kind
    options = list(mount.get("options") or ())
    is_bind = kind in ("bind", "none") or "bind" in options or "rbind" in options
    if not is_bind and (kind in _OF_NAMESPACES or kind in _NOWHERE):
        if target != _OF_NAMESPACES.get(kind):
            raise Failure(f"a {kind} cannot be mounted at {target}", code=WRONG_FILE)
        mounts.oci.append({"destination": target, "type": kind, "source": source, "options": _restricted(options)})
        mounts.taken.add(target)
        return
    if target == "/":
        raise Failure("nothing can be mounted at /", code=WRONG_FILE)
    if mount.get("fill"):
        from podrun_hooks.storage import volumes

        # From the image alone, as docker does: another mount may lie around it, whose content is somebody else's.
        volumes.fill(source, Tree(tree.root), target, mounts.mapping)
    if is_bind:
        made, directory = _bind(source, options, mounts.mapping, mount.get("own"))
    else:
        made, directory = _file_system(kind, source, options, mounts.mapping), True
    try:
        propagation = {word.removeprefix("r") for word in options} & {"slave", "shared"}
        fd = -1
        try:
            with userns.AsRootOf(mounts.mapping):
                fd, destination, inside = tree.make(target, directory=directory)
        except Elsewhere as elsewhere:
            destination = plain(elsewhere.path)
            _permit(target, destination, mounts.taken, directory=directory)
        else:
            tree.mounts.append((destination, made))
            if propagation:
                os.close(fd)
                fd = -1
                if inside:
                    what = f"{target} is in another mount: what the host mounts later cannot be seen there"
                    raise Failure(what, code=WRONG_FILE, hint="leave out slave and shared")
        if fd < 0:
            given = [word for word in options if word.removeprefix("r") in propagation] or ["rprivate"]
            staged = f"{mounts.stage}/{len(mounts.all)}"
            oci = {"destination": destination, "type": "bind", "source": staged, "options": ["rbind", *given]}
            mounts.oci.append(oci)
        mounts.taken.add(destination)
        mounts.all.append(Mount(made, fd, directory))
    except BaseException:
        os.close(made)
        raise


def _permit(target: str, destination: str, taken: set[str], *, directory: bool) -> None:
    """Raises Failure (WRONG_FILE) unless a mount may lie there, in the runtime's own /dev, /proc or /sys."""
    if destination != target and destination not in _BEHIND_LINKS:
        raise Failure(f"nothing can be mounted at {target}: it leads to {destination}", code=WRONG_FILE)
    parts = destination.split("/")[1:]
    if parts[0] == "dev":
        allowed = len(parts) > 1 and parts[1] not in _OF_THE_RUNTIME and ".." not in parts
    elif parts[0] == "sys":
        allowed = any(f"{destination}/".startswith(f"{top}/") for top in _IN_SYS) and ".." not in parts
    else:
        allowed = destination in _IN_PROC and not directory
    if not allowed:
        raise Failure(f"nothing can be mounted at {destination}", code=WRONG_FILE)
    for outer in taken:
        if destination.startswith(f"{outer}/"):
            # The runtime would walk through what somebody else can change.
            raise Failure(f"{destination} is in another mount, {outer}, that is in /{parts[0]}", code=WRONG_FILE)


# --- detached mounts -----------------------------------------------------------------------------------------------


def _bind(
    source: str, options: Sequence[str], mapping: Mapping | None, own: Sequence[int] | None = None
) -> tuple[int, bool]:
    """A detached copy of the mount at ``source``, restricted, and whether it is a directory.

    ``own``: the user and the group who are given all that is in it.
    """
    recursive = "bind" not in options or "rbind" in options
    try:
        tree = syscalls.open_tree(source, recursive=recursive)
    except OSError as error:
        raise Failure(f"{source} cannot be mounted: {error.strerror}") from error
    try:
        about = os.fstat(tree)
        directory = stat.S_ISDIR(about.st_mode)
        unknown = [word for word in options if word not in _WORDS and word.partition("=")[0] not in ("sync", "async")]
        if unknown:
            raise Failure(f"option {unknown[0]!r} is not an option of a bind mount", code=WRONG_FILE)
        if own:
            from podrun_hooks.support import giving

            giving.give(tree, *own)
        kinds = [word.removeprefix("r") for word in options if word.removeprefix("r") in _PROPAGATION]
        given, cleared = _attributes(_restricted(options))
        if mapping:
            _map(tree, source, about, mapping, recursive=recursive, read_only=bool(given & syscalls.MOUNT_ATTR_RDONLY))
        syscalls.mount_setattr(
            tree, given, clear=cleared, recursive=recursive, propagation=_PROPAGATION[kinds[-1] if kinds else "private"]
        )
    except BaseException:
        os.close(tree)
        raise
    return tree, directory


def _map(tree: int, source: str, about: os.stat_result, mapping: Mapping, *, recursive: bool, read_only: bool) -> None:
    """Gives a detached mount the owners of the pod's user namespace.

    Where the file system cannot (NFS; tmpfs before kernel 6.3), everything in it belongs to nobody there: Failure
    (UNAVAILABLE), unless that does not matter.
    """
    try:
        syscalls.mount_setattr(tree, syscalls.MOUNT_ATTR_IDMAP, recursive=recursive, userns=mapping.namespace)
    except OSError as error:
        if error.errno not in userns.NOT_MAPPED:
            raise
        if not userns.tolerates_nobody(source, about.st_mode, read_only=read_only):
            raise Failure(userns.not_mapped(source), code=UNAVAILABLE, hint='userns = "host" in [pod]') from None


def _file_system(kind: str, source: str, options: Sequence[str], mapping: Mapping | None) -> int:
    """A detached mount of a new file system: memory (tmpfs), or any that needs nothing but a name and options."""
    given, _ = _attributes(_restricted(options))
    settings: list[tuple[str, str | None]] = [("source", source)]
    for word in options:
        if word not in _WORDS:
            key, equals, value = word.partition("=")
            settings.append((key, value if equals else None))
    if "ro" in options:
        settings.append(("ro", None))
    if mapping:
        settings = [(key, _shifted(key, value, mapping)) for key, value in settings]
    try:
        tree = syscalls.fsmount(kind, settings, given)
    except OSError as error:
        raise Failure(f"a {kind} cannot be mounted: {error.strerror}", code=code_of(error)) from error
    if mapping:
        owner = os.stat(f"/proc/self/fd/{tree}")
        uid, gid = (
            0 if number else base for number, base in zip((owner.st_uid, owner.st_gid), mapping.base, strict=True)
        )
        os.chown(f"/proc/self/fd/{tree}", uid or -1, gid or -1)
    return tree


def _shifted(key: str, value: str | None, mapping: Mapping) -> str | None:
    """An option of a file system that is an owner, in the host's ids."""
    if key in ("uid", "gid") and value and value.isdecimal():
        return str(int(value) + getattr(mapping.base, key))
    return value


def _restricted(options: Sequence[str]) -> list[str]:
    """Adds nosuid and nodev unless asked otherwise."""
    return [*options, *(f"no{word}" for word in ("suid", "dev") if word not in options)]


def _attributes(options: Sequence[str]) -> tuple[int, int]:
    """MOUNT_ATTR_* to set and to clear; below a bind all is as restricted as its top."""
    given = cleared = 0
    for word in options:
        plain_word = word[1:] if word in ("rnosuid", "rnodev", "rnoexec") else word
        given |= _SET.get(plain_word, 0)
        cleared |= _CLEAR.get(plain_word, 0)
    if given & syscalls.MOUNT_ATTR_ATIME:
        # The access-time modes are one field of three bits, which is replaced as a whole (mount_setattr(2)).
        cleared |= syscalls.MOUNT_ATTR_ATIME
    return given, cleared & ~given | (cleared & syscalls.MOUNT_ATTR_ATIME)
