"""Storage that has to be mounted on the host first: at <run>/pods/POD/mnt/STEP, visible to all processes.

``up`` mounts it and gives the containers a bind of it. ``down`` finds the mount by its path, even if ``up`` was killed.
It removes nothing before the unmount succeeds, and names whoever keeps the mount busy.
"""

from __future__ import annotations

import errno
import os
import time

from podrun.errors import BUSY, NOT_ALLOWED, STEP_FAILED, UNAVAILABLE, WRONG_FILE, Failure, of_oserror
from podrun.hook import Problem
from podrun_hooks.storage.options import GROUP, IMAGE, NFS, OF_A_BIND, RW, SNAPSHOT, VOLUME, kind_of, resolved
from podrun_hooks.support import subprocesses, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from podrun.hook import Facts, Step

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_RESTRICTED = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
#: Behind a step's name: the directory of an overlay's changes, and the one that tells of a snapshot (below the pod's on
#: the disk; leftovers.py).
OVERLAY, SNAPSHOT_NOTE = ".overlay", ".snapshot"
#: Packages with the mount helpers that people miss most.
_HELPERS = {"nfs": "nfs-common", "nfs4": "nfs-common", "cifs": "cifs-utils", "davfs": "davfs2", "ceph": "ceph-common"}


def place_of(step: Step) -> str:
    """The path of the step's mount."""
    return f"{step.pod.directory}/mnt/{step.name}"


def up(step: Step) -> Facts:
    """Mounts the step's source. Facts: a bind of it, and for an image the record that keeps it in the store."""
    options = step.options
    place = place_of(step)
    if os.path.lexists(place):
        down(step, {})
    os.makedirs(place, mode=0o700, exist_ok=True)
    step.status(f"mounting {options.source}")
    kind = kind_of(options.source, options.type, options.options)
    try:
        path, more = _MOUNTERS[kind](step, place)
    except OSError as error:
        failure = of_oserror(error, f"{options.source} cannot be mounted")
        raise Failure(failure.what, code=failure.code) from error
    step.status(f"mounted {options.source}")
    given = resolved(["rbind", "nosuid", "nodev"], [word for word in options.options if word in GROUP])
    if kind == "file" or (kind == "image" and RW not in options.options):
        given = resolved(given, ["ro"])
    bind = {"hostPath": path, "containerPath": options.target, "type": "bind", "options": given}
    return {"mounts": [bind], **more}


def down(step: Step, own: Facts) -> None:
    """Unmounts, then removes what the mount was based on. Raises Failure (BUSY) naming who keeps the mount busy."""
    options = step.options
    place = place_of(step)
    if not own:
        _end_helpers(place)
    step.status(f"unmounting {options.source}")
    unmount(place, options.target)
    step.status(f"removing what {options.target} stood on")
    kind = kind_of(options.source, options.type, options.options)
    if kind == "overlay" or (kind == "image" and RW in options.options):
        from podrun_hooks.support.rooted_tree import clear

        clear(_upper(step))
        _rmdir(step.pod.storage)
    elif kind == "snapshot":
        from podrun_hooks.storage import btrfs
        from podrun_hooks.support.rooted_tree import clear

        btrfs.remove(options.source[len(SNAPSHOT) :], _name(step))
        clear(_note(step))
        _rmdir(step.pod.storage)
    _rmdir(place)
    _rmdir(os.path.dirname(place))


def check(step: Step) -> list[Problem]:
    """Finds missing sources and mount helpers."""
    options = step.options
    kind = kind_of(options.source, options.type, options.options)
    source = options.source
    if kind == "file":
        return _checked_file(step)
    if kind == "image":
        from podrun_hooks import image

        return [problem._replace(key="source") for problem in image.check(_image_step(step))]
    if kind == "snapshot":
        source = source[len(SNAPSHOT) :]
    if kind == "mount" and not source.startswith("/dev/"):
        type_ = "nfs" if source.startswith(NFS) else options.type
        package = _HELPERS.get(type_)
        if package and not any(os.path.exists(f"{path}/mount.{type_}") for path in _PATH.split(":")):
            return [Problem(f"mount.{type_} is not installed", UNAVAILABLE, f"apt install {package}", key="source")]
    if source.startswith("/") and not source.startswith("//") and not os.path.exists(source):
        return [Problem(f"there is no {source} on the host", WRONG_FILE, key="source")]
    return []


def unmount(place: str, target: str) -> None:
    """Unmounts everything that is mounted at ``place``. Raises Failure (BUSY) naming who keeps it busy."""
    while True:
        try:
            syscalls.umount(place, syscalls.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):  # nothing is mounted there (any more)
                return
            if error.errno != errno.EBUSY:
                raise
            from podrun_hooks.storage import busy

            found = busy.holder(place) or "something in the kernel"
            hint = "once that has ended, down goes on"
            raise Failure(f"{target} is still in use: {place} is held by {found}", code=BUSY, hint=hint) from None


# --- the kinds -----------------------------------------------------------------------------------------------------


def _mount(step: Step, place: str) -> tuple[str, Facts]:
    """mount(8), with the helper of the type where it has one."""
    options = step.options
    source, type_ = options.source, options.type
    if source.startswith(NFS):
        source, type_ = source[len(NFS) :], type_ or "nfs"
    given = resolved(["nosuid", "nodev"], options.options)
    given = [word for word in given if word not in OF_A_BIND and word not in ("rro", "rrw")]
    program = subprocesses.find("mount", "mount")
    argv = [program, "-t", type_, "-o", ",".join(given), "--source", source, "--target", place]
    ended = subprocesses.run(argv, env={"PATH": _PATH, "LC_ALL": "C"})
    if ended.status:
        reason = (ended.errors or ended.output or f"mount(8) ended with {ended.status}").splitlines()[0]
        raise Failure(f"{source} cannot be mounted: {reason.removeprefix(f'mount: {place}: ')}", code=STEP_FAILED)
    return place, {}


def _image(step: Step, place: str) -> tuple[str, Facts]:
    """An image's layers, read-only; with rw changes are thrown away. The store keeps what a journal mentions."""
    from podrun_hooks import image

    found = image.up(_image_step(step), {})["images"][step.name]
    layers = list(dict.fromkeys(reversed(found["layers"])))
    if RW in step.options.options:
        _stack(_name(step), place, layers, upper=_fresh_upper(step, layers[0]))
    else:
        show(_name(step), place, layers)
    kept = {key: found[key] for key in ("ref", "digest", "layers")}
    return place, {"images": {f"storage {step.name}": {**kept, "config": {}}}}


def _image_step(step: Step) -> Step:
    from podrun.options import read
    from podrun_hooks import image

    ref = step.options.source[len(IMAGE) :]
    return step._replace(hook="image", options=read(image.Options, {"ref": ref}))


def _overlay_on_path(step: Step, place: str) -> tuple[str, Facts]:
    """A directory under an overlay: changes go to another directory and are discarded."""
    _stack(_name(step), place, [step.options.source], upper=_fresh_upper(step, step.options.source))
    return place, {}


def _fresh_upper(step: Step, below: str) -> str:
    """A new directory for an overlay's changes, whose root looks as that of ``below``."""
    from podrun_hooks.support.rooted_tree import claim, clear

    whole = _upper(step)
    clear(whole)
    about = os.stat(below)
    os.makedirs(whole, mode=0o700)
    claim(whole, step.pod.run)
    for name in (f"{whole}/upper", f"{whole}/work"):
        os.mkdir(name, 0o700)
    # The merged root shows the mode and the owner of upper.
    os.chown(f"{whole}/upper", about.st_uid, about.st_gid)
    os.chmod(f"{whole}/upper", about.st_mode & 0o7777)
    return whole


def _snapshot(step: Step, place: str) -> tuple[str, Facts]:
    from podrun_hooks.storage import btrfs
    from podrun_hooks.support.rooted_tree import claim, clear

    source, note = step.options.source[len(SNAPSHOT) :], _note(step)
    clear(note)
    # The snapshot is beside its source, where nobody would look for it when a power cut has ended the pod.
    os.makedirs(note, mode=0o700)
    os.symlink(source, f"{note}/source")
    claim(note, step.pod.run)
    btrfs.remove(source, _name(step))
    path = btrfs.snapshot(source, _name(step))
    _attach(syscalls.open_tree(path), place, _RESTRICTED)
    return place, {}


def _file(step: Step, place: str) -> tuple[str, Facts]:
    """A file in memory that is never swapped out, in a directory that nobody but root enters."""
    options = step.options
    wanted = dict(word.split("=") for word in options.options if "=" in word)
    if options.secret:
        from podrun_hooks.storage import secrets

        content = secrets.read(step.pod.root, options.secret)
    else:
        content = _credential(options.credential) if options.credential else options.content.encode()
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    if step.pod.userns == "auto":
        # ramfs has no idmapped mounts; tmpfs stays out of swap with noswap, from kernel 6.4 on.
        try:
            syscalls.mount("tmpfs", place, "tmpfs", flags, "mode=0700,noswap")
        except OSError:
            what = f"file: in a user namespace takes Linux 6.4 or later; this is {os.uname().release}"
            raise Failure(what, code=UNAVAILABLE, hint='userns = "host" in [pod]') from None
    else:
        syscalls.mount("ramfs", place, "ramfs", flags, "mode=0700")
    path = f"{place}/content"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while content:
            content = content[os.write(fd, content) :]
        os.fchown(fd, int(wanted.get("uid", "0")), int(wanted.get("gid", "0")))
        os.fchmod(fd, int(wanted.get("mode", "0400"), 8))
    finally:
        os.close(fd)
    return path, {}


def _idmapped(step: Step, place: str) -> tuple[str, Facts]:
    """A path or volume with mapped owners (mount_setattr(2), MOUNT_ATTR_IDMAP)."""
    from podrun_hooks.storage import idmap, volumes

    source = step.options.source
    path = volumes.content_of(step.pod.root, source[len(VOLUME) :]) if source.startswith(VOLUME) else source
    tree = syscalls.open_tree(path, recursive=True)
    idmap.apply(tree, step.options.idmap, path)
    _attach(tree, place, _RESTRICTED)
    return place, {}


_MOUNTERS: dict[str, Callable[[Step, str], tuple[str, Facts]]] = {
    "mount": _mount,
    "image": _image,
    "overlay": _overlay_on_path,
    "snapshot": _snapshot,
    "file": _file,
    "bind": _idmapped,
    "volume": _idmapped,
}


# --- parts ---------------------------------------------------------------------------------------------------------


def _attach(tree: int, place: str, attributes: int) -> None:
    """Attaches a detached mount; restricts it before it becomes visible."""
    try:
        syscalls.mount_setattr(tree, attributes, recursive=True, propagation=syscalls.MS_PRIVATE)
        syscalls.move_mount(tree, place)
    finally:
        os.close(tree)


def show(name: str, place: str, layers: Sequence[str]) -> None:
    """Mounts an image's layers, highest first, at ``place``, read-only; ``name`` is what the mount is called."""
    if len(layers) == 1:  # overlayfs wants two layers, or one and something to write to
        _attach(syscalls.open_tree(layers[0]), place, _RESTRICTED | syscalls.MOUNT_ATTR_RDONLY)
    else:
        _stack(name, place, layers, flags=syscalls.MS_RDONLY)


def _stack(name: str, place: str, layers: Sequence[str], *, upper: str = "", flags: int = 0) -> None:
    """Stacks ``layers``, highest first; a name in /proc/self/fd is short and holds no colon, comma or backslash."""
    fds: list[int] = []

    def short(path: str) -> str:
        fds.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        return f"/proc/self/fd/{fds[-1]}"

    try:
        data = f"lowerdir={':'.join(map(short, layers))}"
        if upper:
            data += f",upperdir={short(f'{upper}/upper')},workdir={short(f'{upper}/work')},volatile"
        syscalls.mount(name, place, "overlay", syscalls.MS_NOSUID | syscalls.MS_NODEV | flags, data)
    finally:
        for fd in fds:
            os.close(fd)


def _name(step: Step) -> str:
    """The name of the step's objects outside the pod's directory."""
    return f"{step.pod.tag}.{step.name}"


def _upper(step: Step) -> str:
    return f"{step.pod.storage}/{step.name}{OVERLAY}"


def _note(step: Step) -> str:
    return f"{step.pod.storage}/{step.name}{SNAPSHOT_NOTE}"


def _credential(name: str) -> bytes:
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    try:
        with open(f"{directory}/{name}", "rb") as file:
            return file.read()
    except OSError as error:
        raise Failure(f"credential {name}: {error.strerror}", code=NOT_ALLOWED) from None


def _checked_file(step: Step) -> list[Problem]:
    options = step.options
    if sum(map(bool, (options.content, options.credential, options.secret))) != 1:
        return [Problem("file: takes one of content, credential and secret", WRONG_FILE, key="source")]
    if options.secret:
        from podrun_hooks.storage import secrets

        if secrets.is_there(step.pod.root, options.secret):
            return []
        lacking = secrets.missing(options.secret)
        return [Problem(lacking.what, lacking.code, lacking.hint, key="secret")]
    if not options.credential:
        return []
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if directory and os.path.exists(f"{directory}/{options.credential}"):
        return []
    hint = f"LoadCredential={options.credential}:/path in the unit's [Service]"
    what = f"podrun was given no credential {options.credential}"
    return [Problem(what, NOT_ALLOWED, hint, fatal=not step.pod.thorough, key="credential")]


def _rmdir(path: str) -> None:
    """Removes a directory if it is empty; never its content, whatever is mounted or left there."""
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
            raise


def _end_helpers(place: str) -> None:
    """Ends what a killed ``up`` left at work: mount(8) dies with podrun, its helper (mount.nfs) would mount later."""
    deadline = time.monotonic() + 5
    while pids := [pid for pid in filter(str.isdecimal, os.listdir("/proc")) if _is_mounting(pid, place)]:
        for pid in pids:
            try:
                os.kill(int(pid), 9)
            except ProcessLookupError:
                pass
        if time.monotonic() > deadline:
            raise Failure(f"process {pids[0]} that mounts {place} does not end", code=BUSY)
        time.sleep(0.005)


def _is_mounting(pid: str, place: str) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            argv = file.read().split(b"\0")
    except OSError:
        return False
    # A helper may be a script: its name follows that of the shell.
    is_mount = any(os.path.basename(word).startswith(b"mount") for word in argv[:2])
    return is_mount and os.fsencode(place) in argv
