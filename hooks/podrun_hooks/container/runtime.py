"""crun and runc: their command lines, and the private mount namespace that each call of them gets."""

from __future__ import annotations

import errno
import os

from podrun import jsontext
from podrun.errors import CANNOT_CREATE, CANNOT_EXECUTE, STEP_FAILED, UNAVAILABLE, Failure
from podrun.record import NamedTuple
from podrun_hooks.container import cgroups
from podrun_hooks.container.paths import PATH
from podrun_hooks.support import subprocesses, syscalls
from podrun_hooks.support.aside import Thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from podrun_hooks.container.paths import Place


class Runtime(NamedTuple):
    """An OCI runtime: "crun" or "runc", and where it is."""

    name: str
    path: str

    def command(self, place: Place, *, own_cgroup: bool = True) -> list[str]:
        """The start of every command line: the program and its global options."""
        argv = [self.path, "--root", place.runtime]
        if self.name == "crun":
            argv.append(f"--cgroup-manager={'cgroupfs' if own_cgroup else 'disabled'}")
        return argv


def choose(wanted: str) -> Runtime:
    """The runtime that ``wanted`` ("auto", "crun", "runc") stands for; Failure (UNAVAILABLE) naming the package."""
    if wanted != "auto":
        return Runtime(wanted, subprocesses.find(wanted, wanted))
    for name in ("crun", "runc"):
        try:
            return Runtime(name, subprocesses.find(name, name))
        except Failure:
            continue
    raise Failure("there is no OCI runtime", code=UNAVAILABLE, hint="apt install crun")


def private(runtime: Runtime, then: Callable[[], None] | None = None) -> Callable[[], None]:
    """What a forked child does before it becomes the runtime: a private mount namespace, then ``then``.

    crun 1.8.1 refuses a host that mounts cgroup v2 with a controller beside v1 ("cgroups in hybrid mode not
    supported"), whatever its manager: in the private namespace that mount is taken away.
    """
    hide = runtime.name == "crun" and _has_hybrid_controller()

    def before() -> None:
        if hide or then:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            # Slave: what the host unmounts meanwhile is not held here, and nothing of ours gets out.
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
        if hide:
            syscalls.umount(cgroups.HYBRID, syscalls.MNT_DETACH)
        if then:
            then()
        syscalls.close_on_exec_from(3)

    return before


def entering(runtime: Runtime, place: Place) -> Callable[[], None]:
    """What a forked child does before it becomes the runtime's ``exec``.

    runc 1.1.5 begins in the root's directory (commandTemplate() in its container_linux.go), which for a container in a
    user namespace of its own is in the mount namespace of its create alone.
    """
    config = _config(place)
    root = config["root"]["path"]
    elsewhere = runtime.name == "runc" and root != place.rootfs

    def make_root() -> None:
        syscalls.mount("tmpfs", os.path.dirname(root), "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=0755")
        os.mkdir(root)

    before = private(runtime, make_root if elsewhere else None)

    def enter() -> None:
        if not _has_own_cgroup(config):
            cgroups.enter_counted(place)
        before()

    return enter


def _config(place: Place) -> dict[str, Any]:
    with open(place.config, encoding="utf-8") as file:
        config: dict[str, Any] = jsontext.loads(file.read())
    return config


def _has_own_cgroup(config: Mapping[str, Any]) -> bool:
    """Whether the runtime made the container's cgroup."""
    return "cgroupsPath" in config["linux"]


def _has_hybrid_controller() -> bool:
    try:
        with open(f"{cgroups.HYBRID}/cgroup.controllers", "rb", buffering=0) as file:
            return bool(file.read(64).strip())
    except OSError:
        return False


def create(
    runtime: Runtime,
    place: Place,
    attach: Callable[[], None],
    streams: Sequence[int],
    *,
    own_cgroup: bool,
    counted: str,
    listening: int,
    console: str,
) -> int:
    """``create``: the container's init, which waits for :func:`start`; returns its pid.

    ``attach`` attaches the root in the runtime's mount namespace; ``streams``: descriptors of the container's stdin,
    stdout and stderr; ``counted``: what cgroups.counting() has made, or ""; descriptors 3 up to 3+``listening`` are
    passed on (sd_listen_fds(3)); ``console``: the socket that wants its terminal, or "".
    Raises Failure with the runtime's words.
    """
    argv = [*runtime.command(place, own_cgroup=own_cgroup), f"--log={place.runtime_log}", "--log-format=json", "create"]
    argv += ["--bundle", place.bundle, "--pid-file", place.pid_file]
    variables = environment(place)
    if console:
        argv += ["--console-socket", console]
    if listening:
        variables["LISTEN_FDS"] = str(listening)
        argv += ["--preserve-fds", str(listening)] if runtime.name == "runc" else []
    unified = bool(counted) and not counted.startswith(f"{cgroups.TOP}/pids/")

    def enter() -> None:
        if counted and not unified:
            cgroups.enter_counted(place)
        attach()

    ended = subprocesses.run(
        [*argv, place.id],
        env=variables,
        before=private(runtime, enter),
        stdin=streams[0],
        stdout=streams[1],
        stderr=streams[2],
        keep=range(3, 3 + listening),
        cgroup=counted if unified else "",
    )
    if ended.status:
        words = _words(place.runtime_log) or ended.errors or f"status {ended.status}"
        raise Failure(f"{runtime.name} create: {words}", code=_code_of(words), hint=_hint_for(words))
    with open(place.pid_file, encoding="utf-8") as file:
        return int(file.read())


def confirm_directory(pid: int) -> None:
    """Raises Failure unless the init of a created container stands in a mount of the container's.

    The runtime resolves the working directory by its name. Who can change a directory on the way to it may have put a
    link to one of the runtime's own descriptors there, a directory of the host (CVE-2024-21626).
    """
    try:
        fd = os.open(f"/proc/{pid}/cwd", os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # it has ended
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb", buffering=0) as file:
            mount = file.read().partition(b"mnt_id:")[2].split(None, 1)[0]
        with open(f"/proc/{pid}/mountinfo", "rb") as file:
            inside = any(line.startswith(mount + b" ") for line in file)
    finally:
        os.close(fd)
    if not inside:
        raise Failure(
            "the working directory is outside of the container", code=CANNOT_EXECUTE, hint="who put it there?"
        )


def forbid_devices(pid: int) -> None:
    """Makes device nodes in the root of a created container unusable (nodev), before anything runs in it.

    For a container without device rules: its image may hold a node of the host's disk. (crun 1.8.1 remounts the root
    with no flags but its own: nodev on the overlay is lost.)
    """
    try:
        namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Failure("the container ended before it was started") from None

    def forbid() -> None:
        # Threads share their root and working directory, which a mount namespace is entered with (setns(2)).
        syscalls.unshare(syscalls.CLONE_FS)
        syscalls.setns(namespace, syscalls.CLONE_NEWNS)
        root = os.open("/", os.O_PATH | os.O_CLOEXEC)
        try:
            syscalls.mount_setattr(root, syscalls.MOUNT_ATTR_NODEV)
        finally:
            os.close(root)

    try:
        Thread(forbid).join()
    except OSError as error:
        raise Failure(f"device nodes in the root file system cannot be made unusable: {error.strerror}") from None
    finally:
        os.close(namespace)


def start(runtime: Runtime, place: Place, config: Mapping[str, Any], *, own_cgroup: bool) -> None:
    """``start``: lets the init run the payload. Raises Failure when it has ended instead.

    ``crun start`` itself writes one byte into exec.fifo and runs the poststart hooks: without such hooks the byte is
    all there is to do, and a process less to start (4 ms, mostly its dynamic linking).
    """
    if runtime.name == "crun" and not config["hooks"].get("poststart"):
        fifo = f"{place.state}/exec.fifo"
        try:
            fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            pass
        else:
            os.unlink(fifo)
            os.write(fd, b"\0")
            os.close(fd)
            return
    argv = [*runtime.command(place, own_cgroup=own_cgroup), "start", place.id]
    ended = subprocesses.run(argv, env=environment(place), before=private(runtime))
    if ended.status:
        raise Failure(f"{runtime.name} start: {ended.errors.splitlines()[-1] if ended.errors else 'failed'}")


def delete(runtime: Runtime, place: Place) -> str:
    """``delete -f``, which succeeds or not; returns its words, "" for success."""
    try:
        own_cgroup = _has_own_cgroup(_config(place))
    except (OSError, ValueError, KeyError):
        own_cgroup = any(os.path.isdir(path) for path in cgroups.of(place))
    argv = [*runtime.command(place, own_cgroup=own_cgroup), "delete", "-f", place.id]
    ended = subprocesses.run(argv, env=environment(place), before=private(runtime))
    return ended.errors or f"status {ended.status}" if ended.status else ""


def is_only_files(runtime: Runtime, place: Place) -> bool:
    """True when ``delete`` of a container without processes would do no more than remove its state directory.

    That is crun with nothing to run afterwards: then a process less to start (4 ms, as for :func:`start`).
    """
    try:
        with open(place.config, encoding="utf-8") as file:
            hooks = jsontext.loads(file.read())["hooks"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return runtime.name == "crun" and not hooks.get("poststop")


def of_state(place: Place, wanted: str) -> Runtime | None:
    """The runtime that made the state directory, by the file it keeps there; None: it has been uninstalled."""
    made_by_runc = os.path.exists(f"{place.state}/state.json")
    name = "runc" if made_by_runc else "crun" if os.path.exists(f"{place.state}/status") else wanted
    try:
        return choose(name)
    except Failure:
        return None


def environment(place: Place) -> dict[str, str]:
    """The runtime's environment: nothing of podrun's, NOTIFY_SOCKET least of all.

    crun protects its own binary from the container with a copy that it makes in this directory, else in /tmp: one that
    was killed meanwhile leaves a file there.
    """
    directory = {"_LIBCONTAINER_STATEDIR": place.written} if os.path.isdir(place.written) else {}
    return {"PATH": PATH, **directory}


def exec_command(runtime: Runtime, place: Place, process_file: str, options: Sequence[str] = ()) -> list[str]:
    """The command line that runs what ``process_file`` (OCI's "process" object) says in a started container."""
    own_cgroup = _has_own_cgroup(_config(place))
    return [*runtime.command(place, own_cgroup=own_cgroup), "exec", *options, "--process", process_file, place.id]


def _code_of(words: str) -> int:
    """The exit code for a runtime's message: CANNOT_CREATE for ENOSPC, as everywhere in podrun."""
    return CANNOT_CREATE if os.strerror(errno.ENOSPC) in words else STEP_FAILED


def _hint_for(words: str) -> str:
    """A hint for a runtime's message, if there is a known remedy."""
    if "keyring" in words and os.strerror(errno.EPERM).lower() in words.lower():
        # The runtime gives each container a session keyring of its own (keyctl(2)), which outer seccomp filters forbid.
        return "what podrun itself runs in forbids keyctl(2); for systemd-nspawn: --system-call-filter=@keyring"
    return ""


def _words(log: str) -> str:
    """The last error in a runtime's log of JSON lines."""
    words = ""
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    entry = jsontext.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict) and entry.get("level") in ("error", "fatal"):
                    message = _plain(str(entry.get("msg", "")))
                    # crun and its child both log; if a pipe broke, the process at its other end knows the reason.
                    words = words if words and message.endswith(os.strerror(errno.EPIPE)) else message
    except FileNotFoundError:
        pass
    return words


def _plain(words: str) -> str:
    """The text of a message; a message from crun's child is itself a JSON line of the log."""
    try:
        inner = jsontext.loads(words)
    except ValueError:
        return words
    return str(inner["msg"]) if isinstance(inner, dict) and "msg" in inner else words
