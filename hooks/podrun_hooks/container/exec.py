"""Commands inside a running container: what ``podrun exec`` and the ready probe run there."""

from __future__ import annotations

import os
import stat

from podrun import jsontext
from podrun.errors import UNAVAILABLE, Failure
from podrun_hooks.container import executables, relay, runtime, spec, users
from podrun_hooks.container import paths as places
from podrun_hooks.support import subprocesses as programs
from podrun_hooks.support import syscalls
from podrun_hooks.support.rooted_tree import Elsewhere, Tree
from podrun_hooks.support.userns import Range

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, NoReturn

    from podrun.hook import Step
    from podrun_hooks.container.paths import Place
    from podrun_hooks.container.processes import Process
    from podrun_hooks.container.runtime import Runtime


def become(
    step: Step, process: Process, argv: Sequence[str], *, interactive: bool = True, detach: bool = False, **wanted: Any
) -> NoReturn:
    """Runs ``argv`` with podrun's own streams and exits with its status; ``wanted`` as for :func:`process_of`.

    Without ``interactive`` it has no input: in a shell's loop it would eat what the loop reads.
    ``detach``: does not wait for it. It has the container's /dev/null for streams, and ends with the container.
    """
    place = places.of(step)
    chosen = _runtime(step, place)
    oci = process_of(place, process, argv, **wanted)
    base = _base(step)
    _find_command(process, oci, base)
    fd = _file(oci)

    def start(options: list[str], streams: tuple[int, int, int]) -> int:
        line = runtime.exec_command(chosen, place, f"/proc/self/fd/{fd}", options)
        variables = {**runtime.environment(place), "TERM": os.environ.get("TERM", "xterm")}
        stdin, stdout, stderr = streams
        ended = programs.run(
            line,
            env=variables,
            before=runtime.entering(chosen, place),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            keep=(fd,),
        )
        return ended.status

    if detach:
        nothing = _nothing(process)
        os._exit(start(["--detach"], (nothing, nothing, nothing)))
    os._exit(relay.run(place, start, tty=bool(wanted.get("tty")), interactive=interactive))


def _nothing(process: Process) -> int:
    """The container's own /dev/null: of the host's the runtime would make the command's user the owner (fchown(2)).

    Raises Failure when the container has made something else of it.
    """
    root = _root(process)
    try:
        resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS
        place = syscalls.openat2(root, "dev/null", os.O_PATH, resolve=resolve)
    except OSError:
        place = -1
    finally:
        os.close(root)
    if place < 0 or not stat.S_ISCHR((found := os.fstat(place)).st_mode) or found.st_rdev != os.makedev(1, 3):
        raise Failure("the container has no /dev/null for a command that nobody waits for", code=UNAVAILABLE)
    return os.open(f"/proc/self/fd/{place}", os.O_RDWR | os.O_CLOEXEC)


def run(step: Step, process: Process, argv: Sequence[str], **wanted: Any) -> programs.Ended:
    """Runs ``argv`` and waits for it, its output captured."""
    place = places.of(step)
    line, fd, chosen = command(step, process, argv, **wanted)
    # Not the host's /dev/null: the runtime gives the container's root what it gets (streams.py).
    nothing, end = os.pipe2(os.O_CLOEXEC)
    os.close(end)
    try:
        before = runtime.entering(chosen, place)
        return programs.run(line, env=runtime.environment(place), before=before, stdin=nothing, keep=(fd,))
    finally:
        os.close(fd)
        os.close(nothing)


def command(step: Step, process: Process, argv: Sequence[str], **wanted: Any) -> tuple[list[str], int, Runtime]:
    """The command line of the runtime's ``exec`` of ``argv``, the descriptor that it reads, and the runtime."""
    place = places.of(step)
    chosen = _runtime(step, place)
    fd = _file(process_of(place, process, argv, **wanted))
    return runtime.exec_command(chosen, place, f"/proc/self/fd/{fd}"), fd, chosen


def process_of(
    place: Place,
    process: Process,
    argv: Sequence[str],
    *,
    tty: bool = False,
    env: Mapping[str, str] | None = None,
    env_files: Sequence[str] = (),
    user: str = "",
    workdir: str = "",
    privileged: bool = False,
) -> dict[str, Any]:
    """OCI's "process" object for ``argv``: the payload's own, changed where asked.

    ``user`` is "user[:group]" as the container's own files have it; ``privileged``: with all capabilities that podrun
    can hand on, and what setuid programs gain. The container's seccomp filter stays. Raises Failure.
    """
    with open(place.config, encoding="utf-8") as file:
        wanted: dict[str, Any] = jsontext.loads(file.read())["process"]
    variables = dict(pair.partition("=")[::2] for pair in wanted["env"])
    # Sockets and readiness are the payload's own business.
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        variables.pop(name, None)
    if tty:
        variables.setdefault("TERM", os.environ.get("TERM", "xterm"))
    if user:
        found = _user(process, user)
        wanted["user"] = {"uid": found.uid, "gid": found.gid, "additionalGids": [found.gid, *found.groups]}
        wanted["capabilities"] = spec.process_capabilities(found, wanted["capabilities"]["bounding"])
        variables["HOME"] = found.home
    if privileged:
        who = users.User(wanted["user"]["uid"], wanted["user"]["gid"], wanted["user"].get("additionalGids", []))
        wanted["capabilities"] = spec.process_capabilities(who, sorted(f"CAP_{name}" for name in spec.bounding()))
        wanted["noNewPrivileges"] = False
    if workdir:
        _refuse_runtimes_directory(process, workdir)
    for path in env_files:
        variables.update(spec.env_file(path))
    variables.update(env or {})
    wanted["env"] = [f"{name}={value}" for name, value in variables.items()]
    spec.refuse_bytes([*argv, *wanted["env"]])
    return {**wanted, "terminal": tty, "args": list(argv), "cwd": workdir or wanted["cwd"]}


def _user(process: Process, user: str) -> users.User:
    root = _root(process)
    try:
        # A link of the payload's to a file of /proc, some of which block who reads them, leads nowhere.
        return users.resolve(user, Tree(root), of_image=False)
    finally:
        os.close(root)


def _base(step: Step) -> Range | None:
    """What the pod's ids begin with on the host."""
    with open(places.of(step).config, encoding="utf-8") as file:
        linux = jsontext.loads(file.read())["linux"]
    if "uidMappings" not in linux:
        return None
    return Range(*(linux[f"{kind}Mappings"][0]["hostID"] for kind in ("uid", "gid")))


def _find_command(process: Process, oci: Mapping[str, Any], base: Range | None) -> None:
    """Raises Failure (NOT_FOUND, CANNOT_EXECUTE) for what the runtime would answer with a 1 or a 255."""
    user, variables = oci["user"], dict(pair.partition("=")[::2] for pair in oci["env"])
    who = users.User(user["uid"], user["gid"], user["additionalGids"])
    root = _root(process)
    try:
        bounding = oci["capabilities"]["bounding"]
        executables.find_command(Tree(root), oci["args"], variables, oci["cwd"], who, bounding, base)
    finally:
        os.close(root)


def _refuse_runtimes_directory(process: Process, workdir: str) -> None:
    """Raises Failure (CANNOT_EXECUTE) for a working directory among descriptors: they would be the runtime's."""
    root = _root(process)
    try:
        os.close(Tree(root).find(workdir)[0])
    except Elsewhere as elsewhere:
        spec.refuse_workdir(workdir, elsewhere)
    except OSError:
        pass  # the runtime tells what is wrong with it
    finally:
        os.close(root)


def _root(process: Process) -> int:
    return os.open(f"/proc/{process.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _runtime(step: Step, place: Place) -> Runtime:
    chosen = runtime.of_state(place, step.options.runtime)
    if chosen is None:
        raise Failure("the runtime of this container is not installed", code=UNAVAILABLE)
    return chosen


def _file(process: Mapping[str, Any]) -> int:
    """An unnamed file: an environment on a command line could be read by every user of the host."""
    fd = os.memfd_create("process", os.MFD_CLOEXEC)
    os.write(fd, jsontext.dumps(process).encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
