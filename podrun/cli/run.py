"""``podrun run`` with any of docker's options: what the start path's table does not know, the converter's table does.

The start path (podrun.launcher.arguments) reads the plain forms without click. Everything else comes here: the words
become a pod as ``podrun convert run`` would write it, and that pod is started.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click

from podrun.cli import stopping
from podrun.convert import commandline, spellings
from podrun.convert.commandline import Token
from podrun.convert.draft import CLOSE, OPEN, Draft, Pod, is_open
from podrun.convert.options import OPTIONS, Meaning, Missing
from podrun.engine import hook_loader
from podrun.engine import journal as journals
from podrun.engine import state as states
from podrun.errors import CANNOT_CREATE, UNAVAILABLE, WRONG_FILE, Failure
from podrun.host import Host
from podrun.launcher import detach, launch, run, transient
from podrun.launcher.arguments import COMMANDS
from podrun.messages import tell
from podrun.options import unknown, whole
from podrun.systemd import notify


def _unused(*_: object) -> None:
    raise AssertionError("these options are this module's own")


#: What is about this command and not about the pod.
OWN = {
    "detach": Meaning(_unused, True), "interactive": Meaning(_unused, True), "tty": Meaning(_unused, True),
    "rm": Meaning(_unused, True), "replace": Meaning(_unused, True), "quiet": Meaning(_unused, True),
    "publish-all": Meaning(_unused, True), "name": Meaning(_unused), "restart": Meaning(_unused),
    "save": Meaning(_unused), "cidfile": Meaning(_unused), "pidfile": Meaning(_unused), "timeout": Meaning(_unused),
    "rmi": Meaning(_unused, True), "volumes-from": Meaning(_unused),
}  # fmt: skip
KNOWN = {**OPTIONS, **OWN}


class Words(NamedTuple):
    """A command line, taken apart."""

    #: Options of OWN: a switch is "true".
    own: dict[str, str]
    #: The others, in order.
    options: list[Token]
    ref: str
    command: list[str]


def taken_apart(arguments: Sequence[str]) -> Words:
    """Options, image and command. Raises Failure (WRONG_FILE)."""
    found, at = commandline.tokens(arguments, 0, KNOWN)
    if at >= len(arguments):
        raise Failure("run: the image is missing", code=WRONG_FILE, hint="podrun run [OPTIONS] REF [COMMAND...]")
    own = {token.name: token.value for token in found if token.name in OWN}
    if "volumes-from" in own:  # may be given several times, and takes a list
        own["volumes-from"] = ",".join(token.value for token in found if token.name == "volumes-from")
    for name, value in list(own.items()):
        if OWN[name].switch and value.lower() in ("false", "0", "no"):
            del own[name]
    rest = [token for token in found if token.name not in OWN]
    return Words(own, rest, arguments[at], list(arguments[at + 1 :]))


def tables(words: Words, name: str, environ: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The pod file of a command line, and what people should know of it.

    Raises Failure (WRONG_FILE) naming all options that podrun does not have, with what to do instead.
    """
    from podrun.cli.convert import settled

    options = [f"--{token.name}={value}" for token in words.options for value in _spelled(token)]
    draft: Draft = commandline.convert(["podrun", "run", *options, "--", words.ref, *words.command], environ, name=name)
    settled(draft)
    [pod] = draft.pods
    notes = [note for note in draft.all_notes() if "is taken from podrun's environment" not in note.what]
    refused = [note for note in notes if note.by_hand and "on this host yet" not in note.what]
    if refused:
        lines = [f"{note.origin.key}: {note.what}" + (f" ({note.hint})" if note.hint else "") for note in refused]
        raise Failure("; ".join(lines), code=WRONG_FILE, hint="nothing was started")
    told = [note for note in notes if note.by_hand or any(word in note.what for word in _TOLD)]
    return _closed(_table(pod, name), environ), [str(note) for note in told]


#: Words in those of the converter's notes that whoever starts a pod is told, too.
_TOLD = ("outlives", "discarded", "ignored")


def _spelled(token: Token) -> list[str]:
    """An option's values. Docker's ADDRESS::PORT leaves the host's port open: a free one is taken here."""
    if token.name != "publish":
        return [token.value]
    chosen = []
    for text in spellings.publish(token.value, "127.0.0.1"):
        address, colon, port = text.rpartition("::")
        if colon and not address.endswith(":") and _is_address(address.strip("[]")):
            text = f"{address}:{_free_port(address.strip('[]'), port.partition('/')[2])}:{port}"
        chosen.append(text)
    return chosen


def _table(pod: Pod, name: str) -> dict[str, Any]:
    table: dict[str, Any] = {"pod": {"name": name, **pod.table}}
    table["chain"] = [{"hook": step.hook, **step.values} for step in pod.steps]
    return {**table, **pod.sections}


def _closed(value: Any, environ: Mapping[str, str]) -> Any:
    """The same with the variables that a pod file would wait for; one that is not set is left out, as docker does."""
    if isinstance(value, str):
        return environ.get(value[len(OPEN) : -len(CLOSE)], "") if value.startswith(OPEN) else value
    if isinstance(value, list):
        return [_closed(item, environ) for item in value]
    if isinstance(value, dict):
        return {key: _closed(item, environ) for key, item in value.items() if not _is_unset(item, environ)}
    return value


def _is_unset(value: Any, environ: Mapping[str, str]) -> bool:
    return type(value) is str and is_open(value) and value[len(OPEN) : -len(CLOSE)] not in environ


def extended(arguments: Sequence[str], host: Host, told: dict[str, Any], *, create: bool = False) -> int:
    """Starts the pod of a command line; returns the exit code. ``create``: only keeps it, for 'podrun start'.

    ``told`` gets "name", the pod's, as soon as it is known.
    """
    words = taken_apart(arguments)
    own = words.own
    name = own.get("name") or run.name_for(words.ref, host)
    if bad := name.strip("abcdefghijklmnopqrstuvwxyz0123456789-@"):
        what = f"a pod cannot be called {name!r}: {bad[0]!r} is not among a-z, 0-9 and -"
        raise Failure(what, code=WRONG_FILE, hint="its name is also a unit's, a host's and a cgroup's")
    told["name"] = name
    if "publish-all" in own:
        words.options.extend(_exposed(words, host))
    pod, notes = tables(words._replace(ref=run.by_id(words.ref, host)), name, host.environ)
    _refuse_unknown_networks(pod, host)
    for note in notes:
        tell(f"podrun: {name}: {note}")
    given: dict[str, Any] = {flag.key: flag.default if flag.value else False for flag in COMMANDS["run"].flags}
    given |= {"name": name, "ref": words.ref, "restart": own.get("restart", ""), "save": own.get("save", "")}
    given |= {key: key in own for key in ("detach", "interactive", "tty", "rm")}
    given["create"] = create
    for key in ("interactive", "tty"):
        if given[key] and (given["save"] or given["detach"] or create):
            next(step for step in pod["chain"] if step["hook"] == "container")[key] = True
    if create and not given["rm"] and hook_loader.part("container", "rootfs").type_of(host.root) != "overlay":
        # What it writes is there at the next start, as with docker; 'podrun rm' removes it. An overlay takes no overlay
        # for the writable layer: there it is in memory, and each start begins anew.
        next(step for step in pod["chain"] if step["hook"] == "container")["persist"] = True
    if given["restart"]:
        for section, settings in run.restarting(given["restart"]).items():
            pod.setdefault(section, {}).update(settings)
    for word in own.get("volumes-from", "").split(","):
        if word:
            _mount_as(pod, word, host)
    detached = given["detach"] or create
    seconds = _seconds(own.get("timeout", ""))
    if seconds and detached:
        _limit_time(pod, seconds, create=create)
    if "rmi" in own and detached:
        hint = "'podrun image rm' removes it when the pod has ended"
        raise Failure("--rmi is for the foreground: nobody waits for a detached pod", code=WRONG_FILE, hint=hint)
    if "replace" in own and not given["save"]:
        stopping.removed(name, host)
    host = _noting(host, name, own)
    if not (detached or seconds or given["save"]) and _is_through_journal(words, given, host):
        given["detach"] = True
        code = run.start(pod, given, host, follow=lambda name: _followed(name, host, remove=given["rm"]))
    else:
        code = run.start(pod, given, host, lifetime=0.0 if detached else seconds)
    if "rmi" in own and not given["save"]:
        _remove_image(words.ref, host)
    return code


def _is_through_journal(words: Words, given: dict[str, Any], host: Host) -> bool:
    """Whether a pod in the foreground is to be a unit, whose journal is shown: --log-driver journald, without input."""
    drivers = [token.value for token in words.options if token.name == "log-driver"]
    wanted = drivers[-1:] == ["journald"] and not (given["interactive"] or given["tty"])
    return wanted and detach.is_by_systemd(host)


def _followed(name: str, host: Host, *, remove: bool) -> int:
    from podrun.cli import attach

    status = attach.follow(host, name)
    if remove:
        stopping.removed(name, host)
    return status


def _refuse_unknown_networks(pod: dict[str, Any], host: Host) -> None:
    """--network NAME means one that there is: a word that was mistyped must not make a network. Raises Failure."""
    wanted = [step["bridge"] for step in pod["chain"] if step["hook"] == "network" and "bridge" in step]
    if not wanted:
        return
    known = {row["name"] for row in hook_loader.part("network", "inspect").known(host.run)}
    for name in wanted:
        if name not in known:
            what = unknown(name, ["bridge", "host", "none", *sorted(known)], "network")
            raise Failure(what, code=WRONG_FILE, hint=f"a table [networks.{name}] in networks.toml declares one")


def _mount_as(pod: dict[str, Any], word: str, host: Host) -> None:
    """--volumes-from NAME[:ro]: the mounts that another pod's file, or command line, has. Raises Failure (UNAVAILABLE).

    What goes with that pod's container (a volume without a name, a tmpfs, a secret) is that container's own.
    """
    name, _, mode = word.partition(":")
    read_only = "ro" in mode.split(",")
    found = journals.journals(host.run, name)
    steps = [entry.step for entry in states.entries(found)]
    if not found and (kept := transient.kept(name, host)):
        steps = [step._asdict() for step in kept.steps]
    if not steps:
        what = f"--volumes-from {name}: there is no such pod"
        raise Failure(what, code=UNAVAILABLE, hint="'podrun ps -a' lists the pods")
    container = next(step for step in pod["chain"] if step["hook"] == "container")
    taken = {text.split(":")[-2 if text.count(":") > 1 else -1] for text in container.get("volumes", ())}
    for step in steps:
        options = step["options"]
        if step["hook"] == "storage" and not str(options.get("source", "")).startswith(("file:", "tmpfs:")):
            words = [*options.get("options", ()), *(["ro"] if read_only else [])]
            pod["chain"].insert(-1, {"hook": "storage", **options, **({"options": words} if words else {})})
        for text in options.get("volumes") or () if step["hook"] == "container" else ():
            source, _, rest = text.rpartition(":/")
            target, _, had = rest.partition(":")
            if source and f"/{target}" not in taken:
                words = [*had.split(","), *(["ro"] if read_only else [])]
                spelled = ",".join(filter(None, dict.fromkeys(words)))
                container.setdefault("volumes", []).append(f"{source}:/{target}{':' if spelled else ''}{spelled}")


def _seconds(text: str) -> int:
    """--timeout. Raises Failure (WRONG_FILE)."""
    if (seconds := whole(text or "0")) is None:
        raise Failure(f"--timeout {text!r}: expected seconds", code=WRONG_FILE)
    return seconds


def _limit_time(pod: dict[str, Any], seconds: int, *, create: bool) -> None:
    """--timeout with -d: the unit ends the pod. Raises Failure (UNAVAILABLE) where there is none."""
    if not (create or notify.booted()):
        hint = "leave out -d"
        raise Failure("--timeout with -d needs a host that systemd runs", code=UNAVAILABLE, hint=hint)
    pod.setdefault("service", {})["RuntimeMaxSec"] = seconds


def _remove_image(ref: str, host: Host) -> None:
    """--rmi: as 'podrun image rm' does; one that another pod uses stays, and is named."""
    from podrun.cli.images import used
    from podrun.launcher import pull

    try:
        pull.store().rm(host.root, [ref], lambda: used(host), os.getcwd())
    except Failure as failure:
        tell(f"podrun: --rmi: {failure.what}")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _exposed(words: Words, host: Host) -> list[Token]:
    """-P: the ports that the image exposes, each at a free port of the host. Brings the image into the store."""
    from podrun.launcher.pull import store

    platform = next((token.value for token in words.options if token.name == "platform"), "")
    found = store().pull(host.root, words.ref, "missing", platform, cwd=os.getcwd())
    ports = (found.config or {}).get("ExposedPorts") or {}
    return [Token("publish", f"0.0.0.0::{port}", "-P") for port in sorted(map(str, ports))]


def _free_port(address: str, protocol: str) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(family, kind) as sock:
        try:
            sock.bind((address, 0))
        except OSError as error:
            raise Failure(f"no port of {address} is free: {error.strerror}", code=UNAVAILABLE) from None
        return int(sock.getsockname()[1])


def _noting(host: Host, name: str, own: Mapping[str, str]) -> Host:
    """The host with a watcher that writes --cidfile and --pidfile when the container is up. Raises Failure."""
    files = {key: own[key] for key in ("cidfile", "pidfile") if key in own}
    if not files:
        return host
    if os.path.lexists(taken := files.get("cidfile", "")):
        raise Failure(f"--cidfile: {taken} already exists", code=CANNOT_CREATE, hint="is its pod still up?")

    def watch(event: str, label: str) -> None:
        host.watch(event, label)
        residents = launch.residents(host.run, name) if event == "up" and label.startswith("container") else []
        for key, path in files.items() if residents else ():
            text = name if key == "cidfile" else str(residents[-1].pid)
            with open(path, "w", encoding="utf-8") as file:
                file.write(f"{text}\n")

    return host._replace(watch=watch)


def help_text() -> str:
    """The part of ``podrun run --help`` about docker's options, by what they set."""
    words = ", ".join(f"--{name}" for name, meaning in sorted(KNOWN.items()) if not isinstance(meaning.do, Missing))
    return f"docker's and podman's options: {words}. What podrun does not have it refuses, saying what to do instead."


class Run(click.Command):
    """``run``: click shows its help, the tables read its words."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args[:1] == ["--help"]:
            return super().parse_args(ctx, args)
        ctx.params = {"arguments": list(args)}
        return []

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write_text(help_text())
