"""``podrun run``: the pod that a command line describes, as the tables that a pod file would hold."""

from __future__ import annotations

import os

from podrun.engine import hook_loader
from podrun.engine import journal as journals
from podrun.errors import BUSY, UNAVAILABLE, WRONG_FILE, Failure
from podrun.launcher import environment, launch
from podrun.messages import tell
from podrun.podfile import loader
from podrun.systemd import events, exit_records, notify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from podrun.host import Host


def run(given: dict[str, Any], host: Host) -> int:
    """Starts the pod of a ``run`` command line (the parameters of podrun.launcher.arguments); returns the exit code."""
    given["name"] = given["name"] or name_for(given["ref"], host)
    given["ref"] = by_id(given["ref"], host)
    return start(tables(given, host), given, host)


def start(
    pod: dict[str, Any],
    given: dict[str, Any],
    host: Host,
    *,
    lifetime: float = 0.0,
    follow: Callable[[str], int] | None = None,
) -> int:
    """Starts, or with ``save`` writes, the pod of these tables; ``given`` as for run(). Returns the exit code.

    ``lifetime``: seconds after which a pod in the foreground is ended; 0: it is not. ``follow``: what stays with one
    that was started detached, and has its status.
    """
    name = given["name"]
    text = loader.from_tables(_literal(pod), file="", name=name, environ={}, load_hook=hook_loader.load)
    if given["save"]:
        _save(given["save"], pod)
        return 0
    if given.get("create"):
        from podrun.launcher import transient

        transient.create(text, host)
        events.note(host.run, "pod", "create", name)
        print(name, flush=True)
        return 0
    if given["restart"] not in ("", "no") and not (given["detach"] and notify.booted()):
        raise Failure(
            "--restart needs -d on a host that systemd runs", code=UNAVAILABLE, hint="systemd does the restarting"
        )
    if given["detach"]:
        from podrun.launcher import detach

        if exit_records.is_created(host.root, name):
            hint = f"'podrun start {name}' starts it, 'podrun rm {name}' removes it"
            raise Failure("a pod of this name was created", code=BUSY, hint=hint)
        code = detach.start(text, host)
        if follow:
            return code or follow(name)
        if not code:
            print(name, flush=True)
        return code
    if not given["tty"]:
        return launch.up(text, host, interactive=given["interactive"], lifetime=lifetime)
    if not os.isatty(0):
        tell(f"podrun: {name}: The input device is not a TTY: what comes in is typed into a terminal all the same")
    from podrun.launcher.terminal import Terminal

    with Terminal() as terminal:
        return launch.up(text, host, interactive=True, terminal=terminal, lifetime=lifetime)


def by_id(ref: str, host: Host) -> str:
    """The name of the stored image that an id or a digest means; any other reference as it is."""
    digits = ref.removeprefix("sha256:")
    if not (12 <= len(digits) <= 64 and not digits.strip("0123456789abcdef")):
        return ref
    found: str = hook_loader.part("image", "lookup").named_by(host.root, ref)
    return found


def tables(given: dict[str, Any], host: Host) -> dict[str, Any]:
    """The pod file of a command line: image, network, container."""
    image = {"hook": "image", "ref": given["ref"], **_given(given, pull="pull")}
    if given["network"] == "host" and given["publish"]:
        tell(f"podrun: {given['name']}: -p is discarded: in the host's network every port is the host's")
        given["publish"] = []
    network = {"hook": "network", "mode": given["network"], **_given(given, publish="publish", hostname="hostname")}
    container = {
        "hook": "container",
        **_given(given, command="command", user="user", workdir="workdir", volumes="volumes", memory="memory"),
        **_given(given, cap_add="cap_add", cap_drop="cap_drop", read_only="read_only", init="init"),
    }
    if given["entrypoint"] is not None:
        container["entrypoint"] = [given["entrypoint"]] if given["entrypoint"] else []
    if given["interactive"] and (given["save"] or given["detach"]):
        container["interactive"] = True
    if given["tty"] and (given["save"] or given["detach"]):
        container["tty"] = True
    if given["env"]:
        container["env"] = environment.of(given["env"], host)
    about = {"name": given["name"], **_given(given, userns="userns")}
    pod: dict[str, Any] = {"pod": about, "chain": [image, network, container]}
    return {**pod, **restarting(given["restart"])} if given["restart"] else pod


def restarting(policy: str) -> dict[str, Any]:
    """The tables for systemd that docker's --restart means."""
    word, colon, count = policy.partition(":")
    words = {"no": "no", "on-failure": "on-failure", "always": "always", "unless-stopped": "always"}
    if word not in words or (colon and (word != "on-failure" or not count.isdecimal())):
        raise Failure(f"--restart {policy!r}: expected {', '.join(words)} or on-failure:N", code=WRONG_FILE)
    # systemd counts starts, docker restarts.
    limit = {"unit": {"StartLimitBurst": int(count) + 1, "StartLimitIntervalSec": "infinity"}} if colon else {}
    return {"service": {"Restart": words[word]}, **limit}


def _literal(value: Any) -> Any:
    """The same value with every "${" escaped: the shell has substituted what it was to substitute."""
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, list):
        return [_literal(item) for item in value]
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    return value


def _given(given: dict[str, Any], **keys: str) -> dict[str, Any]:
    return {option: given[key] for key, option in keys.items() if given[key]}


def name_for(ref: str, host: Host) -> str:
    """A name that no pod has now: the image's last word and four random hexadecimal digits."""
    word = ref.partition("@")[0].rstrip("/").rpartition("/")[2].partition(":")[0] or ref.partition(":")[0]
    plain = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in word.lower()).strip("-")
    while True:
        name = f"{plain[:40] or 'pod'}-{os.urandom(2).hex()}"
        if not os.path.lexists(journals.directory(host.run, name)):
            return name


def _save(path: str, pod: dict[str, Any]) -> None:
    """Writes the pod file; an existing file is not overwritten."""
    from podrun import tomltext

    text = tomltext.pod_file(pod, tomltext.literal, tomltext.quoted)
    try:
        # Environment variables of a pod file may be secrets.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise Failure(f"{path} exists", code=WRONG_FILE, hint="--save does not overwrite") from None
