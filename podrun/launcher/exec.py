"""``podrun exec``: becomes a command in a running container."""

from __future__ import annotations

import os

from podrun.engine import hook_loader
from podrun.engine import journal as journals
from podrun.engine import state as states
from podrun.engine.processes import alive
from podrun.engine.segments import resolve
from podrun.errors import BUSY, UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook_extras import RunsCommands, offers
from podrun.launcher import environment
from podrun.systemd import events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from podrun.host import Host


def exec_into(name: str, given: dict[str, Any], host: Host) -> NoReturn:
    """Runs the command in the container and ends with its status. Raises Failure when there is no such container."""
    found = states.resident(host.run, name, given["container"])
    if found is None or found[0].header is None:
        raise no_container(host.run, name)
    journal, entry = found
    assert journal.header is not None
    process = entry.facts.get("process") or entry.process
    if not process or not alive(process["pid"], process["start"]):
        raise Failure("the container has ended", code=BUSY, hint=f"'podrun restart {name}' starts it again")
    hook = hook_loader.load(entry.step["hook"])
    step = resolve(journal.header.pod, hook, entry.step)
    running = offers(hook, RunsCommands)
    if running is None:
        raise Failure(f"{step.label}: its hook cannot run commands in it")
    wanted = {key: given[key] for key in ("interactive", "tty", "user", "workdir", "privileged", "detach")}
    wanted["env_files"] = [os.path.abspath(path) for path in given["env_files"]]
    if given["detach"] and given["tty"]:
        raise Failure("-t needs somebody who waits for the command", code=WRONG_FILE, hint="leave out -d, or -t")
    events.note(host.run, "pod", "exec", name)
    running.exec_into(step, entry.facts, given["command"], env=environment.of(given["env"], host), **wanted)


def no_container(run: str, name: str) -> Failure:
    """What is said where a pod, or that container of it, is not there."""
    hint = f"see 'podrun inspect {name}'" if journals.journals(run, name) else "'podrun ps -a' lists the pods"
    return Failure("there is no such container", code=UNAVAILABLE, hint=hint)
