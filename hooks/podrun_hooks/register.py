"""Registration: a service's record in the registry, from ready to drained. The file registry needs no server."""

from __future__ import annotations

import errno
import os
import time

from podrun import jsontext
from podrun.errors import WRONG_FILE, Failure
from podrun.options import DURATION, PORT, TEXT, Wrong, checked, choice, option, table_of
from podrun.record import NamedTuple
from podrun.unit_needs import Span, UnitNeeds
from podrun_hooks.support import trusted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from podrun.hook import Facts, Problem, Step

takes: Sequence[str] = ("addresses", "netns", "ready", "process")
gives: Sequence[str] = ("record",)
resident = False
default_name = ""
unit_needs = UnitNeeds(stop=(Span(("drain",), 0.0),))

_NAME = "abcdefghijklmnopqrstuvwxyz0123456789-."


def _service(text: str) -> str:
    if not text or text.strip(_NAME) or text[0] in "-." or len(text) > 63:
        raise Wrong(f"expected a service name of [a-z0-9.-], not {text!r}")
    return text


def _registry(text: str) -> str:
    kind, colon, where = text.partition(":")
    if kind != "file" or not colon:
        raise Wrong(f"expected file: or file:/directory, not {text!r}")
    if where and (not where.startswith("/") or ".." in where.split("/")):
        raise Wrong(f"expected an absolute path after file:, not {where!r}")
    return where


SERVICE = checked(TEXT, _service)


class Options(NamedTuple):
    """A service's record."""

    service: str = option(SERVICE, "the name that others look the service up by")
    port: int = option(PORT, "the port it listens on")
    proto: str = option(choice("tcp", "udp", "sctp"), "its transport", "tcp")
    registry: str = option(checked(TEXT, _registry), "where to register: file:, or file:/directory of a registry", "")
    address: str = option(TEXT, "the address to give out instead of the pod's own", "")
    drain: float = option(DURATION, "on stop: how long to wait after deregistering, before the container ends", 0.0)
    meta: dict[str, str] = option(table_of(TEXT), "anything else that readers of the record should know", {})


def up(step: Step, facts: Facts) -> Facts:
    """Writes the record: ready when a container before this step is."""
    path = _path(step)
    _write(path, _record(step, facts))
    return {"record": path}


def down(step: Step, own: Facts) -> None:
    """Removes the record and lets clients drain; nothing to drain when it is gone already.

    Only a record of this invocation is removed: a successor's has the same name.
    """
    path = _path(step)
    mine = _read(path)
    _remove_unfinished(path)
    successors = mine is not None and mine.get("gen") != step.pod.invocation
    try:
        if mine is not None and not successors:
            os.unlink(path)
        os.rmdir(os.path.dirname(path))
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
    if mine is not None and not successors and own and step.options.drain:
        step.status(f"draining {step.options.service} for {step.options.drain:g} s")
        time.sleep(step.options.drain)


def check(step: Step) -> list[Problem]:
    """A registry that is given by its path has to exist."""
    from podrun.hook import Problem

    options: Options = step.options
    if options.registry and not os.path.isdir(options.registry):
        return [
            Problem(f"there is no registry at {options.registry}", WRONG_FILE, "create the directory", key="registry")
        ]
    try:
        _directory(step)
    except Failure as failure:
        return [Problem(failure.what, failure.code, failure.hint, key="registry")]
    return []


def explain(step: Step) -> list[str]:
    """The record as a shell would write it."""
    record = jsontext.dumps({**_record(step, {}), "addr": "ADDRESS", "ready": True})
    return [f"mkdir -p {_directory(step)}", f"echo '{record}' >{_path(step)}   # by rename(2)"]


def _directory(step: Step) -> str:
    """The directory of a service. Raises Failure for a registry that others than root could change.

    They could have a record, which everybody believes, be any other one, and root write through a link of theirs.
    """
    options: Options = step.options
    registry = f"{step.pod.run}/registry"
    if options.registry:
        try:
            registry = trusted.place(options.registry, "/var/lib/podrun", strict=False)
        except FileNotFoundError:
            registry = options.registry  # nothing is made there: check says so
    return f"{registry}/{options.service}"


def _identity(step: Step) -> str:
    return f"{step.pod.name}.{step.name}@{os.uname().nodename}"


def _path(step: Step) -> str:
    return f"{_directory(step)}/{_identity(step)}.json"


def _record(step: Step, facts: Facts) -> dict[str, Any]:
    options: Options = step.options
    addresses = facts.get("addresses") or []
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        boot_id = file.read().strip()
    return {
        "v": 1,
        "id": _identity(step),
        "service": options.service,
        "host": os.uname().nodename,
        "addr": options.address or (addresses[0].partition("/")[0] if addresses else "127.0.0.1"),
        "port": options.port,
        "proto": options.proto,
        "ready": bool(facts.get("ready")),
        "gen": step.pod.invocation,
        "boot_id": boot_id,
        "unit": step.pod.name,
        "meta": options.meta,
    }


def _read(path: str) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8") as file:
            found = jsontext.loads(file.read())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: str, record: dict[str, Any]) -> None:
    """Readers see the whole record or none (rename(2)); anybody may read it: it holds no secret."""
    unfinished = _unfinished(path)
    for attempt in range(8):
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(unfinished, flags, 0o644), "w", encoding="utf-8") as file:
                file.write(jsontext.dumps(record) + "\n")
        except FileNotFoundError:
            # The service's last other record went, and its directory with it.
            if attempt == 7:
                raise
            continue
        os.rename(unfinished, path)
        return


def _unfinished(path: str) -> str:
    directory, _, name = path.rpartition("/")
    return f"{directory}/.{name}"


def _remove_unfinished(path: str) -> None:
    try:
        os.unlink(_unfinished(path))
    except FileNotFoundError:
        pass
