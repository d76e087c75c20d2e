"""Where a container keeps what it makes: every path and name follows from the step, so that an undo finds them all."""

from __future__ import annotations

import os
import stat

from podrun.errors import CANNOT_CREATE, Failure
from podrun.record import NamedTuple
from podrun_hooks.support.rooted_tree import OWNER, claim, clear

TYPE_CHECKING = False
if TYPE_CHECKING:
    from podrun.hook import Step

#: Below $PODRUN_RUN: the runtime's state directories, one for each container.
RUNTIME_ROOT = "runtime"
#: Where the runtime, and a payload whose image says nothing, looks for programs.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: podman's annotation; it tells ``down`` what the image wants, also when ``up`` was killed.
STOP_SIGNAL = "org.opencontainers.image.stopSignal"


class Place(NamedTuple):
    """The paths of one container, absolute."""

    #: What the runtime calls it: "podrun-web.main". No container's name has a dot, so none is ambiguous.
    id: str
    #: The OCI bundle, on tmpfs: config.json, the mount point of the root file system, the pid file.
    bundle: str
    #: The writable layer and overlayfs' work directory, on disk.
    storage: str
    #: The runtime's --root.
    runtime: str
    #: Where the output goes when nobody reads it.
    log: str
    #: The source of the overlay in mountinfo, which is how a process of this container is recognised.
    mark: str
    #: The container's own cgroup below every hierarchy, when it has one.
    cgroup: str

    @property
    def config(self) -> str:
        """The runtime's configuration; it holds the environment, hence 0600."""
        return f"{self.bundle}/config.json"

    @property
    def rootfs(self) -> str:
        """The mount point of the merged root: an empty directory in every namespace but the container's own."""
        return f"{self.bundle}/rootfs"

    @property
    def stage(self) -> str:
        """Where the runtime finds the mounts that it makes itself: an empty directory in every other namespace."""
        return f"{self.bundle}/stage"

    @property
    def written(self) -> str:
        """What the runtime's create writes goes here, temporary files of its own included."""
        return f"{self.bundle}/created"

    @property
    def pid_file(self) -> str:
        """The pid of the container's init."""
        return f"{self.written}/pid"

    @property
    def runtime_log(self) -> str:
        """What the runtime has to say, in JSON lines."""
        return f"{self.written}/log"

    @property
    def notify(self) -> str:
        """The directory with the socket of ``ready = { notify = true }``, as the container sees it."""
        return f"{self.bundle}/notify"

    @property
    def direct(self) -> str:
        """Another name of systemd's socket, until it takes the place of that one (``notify = "direct"``)."""
        return f"{self.bundle}/systemd"

    @property
    def upper(self) -> str:
        """The writable layer."""
        return f"{self.storage}/upper"

    @property
    def work(self) -> str:
        """The work directory of overlayfs, on the file system of ``upper``."""
        return f"{self.storage}/work"

    @property
    def memory(self) -> str:
        """Where the writable layer is if it cannot lie on the file system of ``storage``."""
        return f"{self.bundle}/memory"

    @property
    def volumes(self) -> str:
        """What the image's VOLUME directories hold."""
        return f"{self.storage}/volumes"

    @property
    def owner(self) -> str:
        """A link to the run directory, while the layer ends with its pod: how gc knows what a power cut has left."""
        return f"{self.storage}/{OWNER}"

    @property
    def state(self) -> str:
        """The runtime's state directory of this container."""
        return f"{self.runtime}/{self.id}"


def of(step: Step) -> Place:
    """The place of a container step."""
    pod = step.pod
    tag = pod.tag or f"podrun-{pod.name}"
    bundle = f"{pod.directory}/{step.name}"
    identity = f"{tag}.{step.name}"
    return Place(
        id=identity,
        bundle=bundle,
        storage=f"{pod.storage}/{step.name}",
        runtime=f"{pod.run}/{RUNTIME_ROOT}",
        log=f"{pod.storage}/{step.name}.log",
        mark=mark_of(identity, bundle),
        cgroup=f"/{pod.cgroup.strip('/')}/{step.name}{pod.suffix}" if pod.cgroup else f"/podrun/{identity}",
    )


def mark_of(identity: str, bundle: str) -> str:
    """See Place.mark."""
    from _blake2 import blake2b

    return f"{identity}-{blake2b(os.fsencode(bundle), digest_size=8).hexdigest()}"


def prepare(place: Place, *, persist: bool) -> None:
    """Makes the directories. A writable layer left by an earlier boot is emptied, unless it is to persist."""
    os.makedirs(place.bundle, mode=0o700, exist_ok=True)
    os.makedirs(place.storage, mode=0o700, exist_ok=True)
    _leave_memory(place)
    if persist:
        _unlinked(place.owner)
    else:
        claim(place.storage, os.path.dirname(place.runtime))
        clear(place.upper)
        clear(place.volumes)
    clear(place.work)
    clear(place.written)
    # The merged root shows the mode of upper: 0700 would lock every user but root out of the container's "/".
    for directory, mode in ((place.upper, 0o755), (place.work, 0o700), (place.rootfs, 0o700), (place.written, 0o700)):
        try:
            os.mkdir(directory, mode)
            os.chmod(directory, mode)
        except FileExistsError:
            pass
        except NotADirectoryError:
            raise Failure(f"{directory} is in the way", code=CANNOT_CREATE) from None


def move_to_memory(place: Place) -> None:
    """Moves the writable layer, in which there is nothing yet, into the run directory; its usual places lead there."""
    os.makedirs(place.memory, mode=0o700, exist_ok=True)
    for directory in (place.upper, place.work):
        about = os.stat(directory)
        there = f"{place.memory}/{os.path.basename(directory)}"
        os.mkdir(there, 0o700)
        os.chown(there, about.st_uid, about.st_gid)
        os.chmod(there, stat.S_IMODE(about.st_mode))
        clear(directory)
        os.symlink(there, directory)


def _leave_memory(place: Place) -> None:
    for link in (place.upper, place.work):
        if os.path.islink(link):
            os.unlink(link)
    clear(place.memory)


def remove(place: Place, *, persist: bool) -> None:
    """Removes all of it, by name: another step's files below the same directories are none of ours.

    The runtime's --root stays: another pod's runtime may be about to make its own directory in it.
    """
    clear(place.written)
    _leave_memory(place)
    for file in (place.config, f"{place.notify}/socket", place.direct):
        _unlinked(file)
    remove_logs(place.log)
    for directory in (place.rootfs, place.stage, place.notify, place.bundle):
        _rmdir(directory)
    clear(place.work)
    if not persist:
        clear(place.volumes)
        clear(place.upper)
        clear(f"{place.storage}/empty")
        _unlinked(place.owner)
        generation = os.path.dirname(place.storage)
        # A later generation's is below its pod's (Pod.storage).
        above = [os.path.dirname(generation)] if os.path.basename(generation)[0] == "+" else []
        for directory in (place.storage, generation, *above):
            _rmdir(directory)


def remove_logs(log: str) -> None:
    """Removes a log with the older parts of it."""
    _unlinked(log)
    older = 1
    while _unlinked(f"{log}.{older}"):
        older += 1


def _unlinked(file: str) -> bool:
    try:
        os.unlink(file)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _rmdir(directory: str) -> None:
    try:
        os.rmdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        # Whatever else is in there belongs to somebody else: another container of the pod, a persisting layer.
        if error.errno not in (39, 17):  # ENOTEMPTY, EEXIST
            raise
