"""Carrying out the plain commands: up, down, run, exec and image pull, from their parameters to the exit code."""

from __future__ import annotations

import errno
import os

from podrun import messages, ownership
from podrun.errors import INTERNAL, NOT_ALLOWED, UNAVAILABLE, WRONG_FILE, Failure, Interrupted, of_oserror
from podrun.host import ROOT, RUN, Host
from podrun.messages import quiet, tell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from podrun.podfile.loader import PodText


def act(command: str, given: dict[str, Any], host: Host | None = None) -> int:
    """Carries out one of them with the parameters that podrun.launcher.arguments declares; returns the exit code."""
    return guarded(lambda: _ACTS[command](given, host or host_of(given)), given)


def guarded(work: Callable[[], int | None], given: dict[str, Any]) -> int:
    """Does a command's work; an error becomes one line and the exit code.

    ``given`` are the parameters: they have the pod's name, and whether tracebacks are wanted.
    """
    try:
        return work() or 0
    except (Failure, Interrupted) as error:
        return messages.report(_as_root(error), subject(given), given["debug"])
    except KeyboardInterrupt:
        tell(f"podrun: {subject(given)}interrupted; run it again to go on")
        return 130
    except BrokenPipeError:
        # The reader of our output (less, head) has closed it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        return messages.report(_as_root(of_oserror(error)), subject(given), given["debug"])
    except ModuleNotFoundError as error:
        return messages.report(_lacking(error), subject(given), given["debug"])
    except Exception as error:
        if given["debug"]:
            raise
        tell(f"podrun: internal error: {type(error).__name__}: {error}; --debug shows where")
        return INTERNAL


def _as_root(error: Failure | Interrupted) -> Failure | Interrupted:
    """The same error; for others than root, all commands say in the same words what the kernel does not permit."""
    refusals = (os.strerror(errno.EACCES), os.strerror(errno.EPERM))
    if os.geteuid() and isinstance(error, Failure) and any(words in error.what for words in refusals):
        return Failure(f"podrun needs root: {error.what}", code=NOT_ALLOWED, hint="sudo podrun ...")
    return error


def _lacking(error: ModuleNotFoundError) -> Failure:
    """The failure for a module that only some commands need, and that this Python lacks."""
    name = str(error.name).partition(".")[0]
    hint = f"install it: apt install python3-{name}, or pip install {name}"
    return Failure(f"this command needs the Python module {name}", code=UNAVAILABLE, hint=hint)


def host_of(given: dict[str, Any]) -> Host:
    """The machine, with the directories that the command line or the environment names. Raises Failure."""

    def report(line: str) -> None:
        tell(f"podrun: {subject(given)}{line}")

    def watch(event: str, label: str) -> None:
        report(f"{event} {label}")

    root = given.get("root") or os.environ.get("PODRUN_ROOT") or ROOT
    run = given.get("run") or os.environ.get("PODRUN_RUN") or RUN
    root, run = os.path.abspath(root), os.path.abspath(run)
    for path in (root, run):
        try:
            if path not in (ROOT, RUN):
                ownership.check(path)  # journals and layers in it are believed
        except ownership.Untrusted as error:
            raise Failure(error.about(path), code=NOT_ALLOWED, hint=error.hint(os.path.dirname(ROOT))) from None
    return Host(root, run, os.environ, report, watch if given.get("debug") else quiet)


def name_of(word: str, host: Host) -> str:
    """The pod that a FILE or NAME word means: for a file the pod that was started from it, else what it says itself.

    In the place of a name, 12 digits or more of a pod's id (``ps --filter id=``, ``inspect``) stand for that pod.
    """
    if "/" not in word and not word.endswith(".toml"):
        return _of_id(word, host) or valid_name(word)
    from podrun.engine import hook_loader
    from podrun.engine import state as states
    from podrun.podfile import loader

    started = states.file_of(host.run, word)
    if len(started) == 1:
        return started[0]
    try:
        return loader.load(word, environ=None, load_hook=hook_loader.load).name
    except Failure:
        # The file is broken or gone. down has to work all the same: take the name that it was started under.
        return valid_name(_shown(word))


def _of_id(word: str, host: Host) -> str:
    """The pod whose id begins so; "" where there is none, or a pod of that name. Raises Failure for several."""
    if not 12 <= len(word) <= 32 or word.strip("0123456789abcdef"):
        return ""
    from podrun.engine import journal as journals
    from podrun.systemd import exit_records

    known = {name: journals.journals(host.run, name) for name in journals.pods(host.run)}
    ids = {name: {one.header.pod.invocation for one in found if one.header} for name, found in known.items()}
    for name in exit_records.names(host.run):
        ids.setdefault(name, {one.invocation for one in exit_records.all_of(host.run, name)})
    meant = [name for name, own in ids.items() if any(id.startswith(word) for id in own)]
    if word in ids or not meant:
        return ""
    if len(meant) > 1:
        raise Failure(f"several pods have an id that begins with {word}", code=WRONG_FILE, hint=", ".join(meant))
    return meant[0]


def valid_name(name: str) -> str:
    """The name of a pod, refused when no pod file could have given it: it becomes part of paths."""
    from podrun.options import Wrong
    from podrun.podfile.tables import POD_NAME, STEP_NAME

    pod, at, instance = name.partition("@")
    try:
        POD_NAME.parse(pod)
        if at:
            STEP_NAME.parse(instance)
    except Wrong as wrong:
        raise Failure(f"{name!r} is not the name of a pod: {wrong.what}", code=WRONG_FILE) from None
    return name


def _up(given: dict[str, Any], host: Host) -> int:
    from podrun.engine import hook_loader
    from podrun.launcher import launch
    from podrun.podfile import cache, loader
    from podrun.systemd import notify

    if given["resolved"]:
        from podrun.launcher import transient

        text = transient.resolved(given["word"])
        given["word"] = text.name
    elif (inside := notify.takes_over(host.environ)) and (wanted := _wanted_once(host)):
        text = wanted
    else:
        text = loader.load(
            given["word"],
            environ=host.environ,
            load_hook=hook_loader.load,
            in_unit=inside,
            cache=cache.directory(host.run),
        )
    # What the pod is called from here on, whatever its file is.
    given["word"] = text.name
    if given["detach"] and not given["segment"]:
        from podrun.launcher import detach

        return detach.start(text, host)
    return launch.up(text, host, detach=given["detach"], segment=given["segment"], reload=_reload_in_foreground)


def _wanted_once(host: Host) -> PodText | None:
    from podrun.launcher import once

    return once.take(host)


def _down(given: dict[str, Any], host: Host) -> int:
    from podrun.launcher import launch

    name = given["word"] = name_of(given["word"], host)
    if not given["invocation"] and not launch.is_known(name, host):
        host.report("there is no such pod: nothing was undone")
        return 0
    return launch.down(
        name,
        host,
        invocation=given["invocation"],
        force=given["force"],
        segment=given["segment"],
        patience=given.get("time"),
    )


def _reload_in_foreground(name: str, host: Host) -> None:
    from podrun.launcher import reload

    reload.in_foreground(name, host)


def _reload(given: dict[str, Any], host: Host) -> int:
    from podrun.launcher import reload

    if given["resolved"]:
        from podrun.launcher import transient

        text = transient.resolved(given["word"])
        given["word"] = text.name
        return reload.reload(text.name, host, text=text)
    return reload.reload(name_of(given["word"], host), host)


def _run(given: dict[str, Any], host: Host) -> int:
    from podrun.launcher import run

    return run.run(given, host)


def _exec(given: dict[str, Any], host: Host) -> int:
    from podrun.launcher import exec

    return exec.exec_into(name_of(given["word"], host), given, host)


def _image_pull(given: dict[str, Any], host: Host) -> int:
    from podrun.launcher import pull

    return pull.pull(given, host)


def subject(given: dict[str, Any]) -> str:
    """The pod in front of a message: "web: ", or nothing while it has no name."""
    name = _shown(str(given.get("word") or given.get("name") or ""))
    return f"{name}: " if name else ""


def _follow(given: dict[str, Any], host: Host) -> int:
    from podrun.engine import hook_loader

    if os.geteuid():
        raise Failure("podrun needs root: it leads pods to services", code=NOT_ALLOWED, hint="sudo podrun ...")
    hook_loader.follower().become(host.run)
    return 0


_ACTS = {
    "up": _up,
    "down": _down,
    "reload": _reload,
    "run": _run,
    "exec": _exec,
    "image pull": _image_pull,
    "follow": _follow,
}


def _shown(word: str) -> str:
    """The pod's name in a FILE or NAME word: what messages and journals call it."""
    if "/" in word or word.endswith(".toml"):
        return word.rsplit("/", 1)[-1].removesuffix(".toml")
    return word
