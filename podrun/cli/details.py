"""What is known of one container: since when, its command, limits and health; from journals, /proc and cgroups."""

from __future__ import annotations

import os
import time

from podrun.engine.processes import alive, boot_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from podrun.engine.journal import Entry, Header
    from podrun.facts import Facts

_CGROUPS = "/sys/fs/cgroup"
#: Variables whose values are never shown.
_SECRET = ("PASS", "SECRET", "TOKEN", "KEY", "CREDENTIAL", "AUTH")


def began(header: Header | None, entry: Entry) -> float | None:
    """When a container was started, in seconds since 1970; None where that is not known any more."""
    if not entry.began or not header or header.boot_id != boot_id():
        return None
    return round(time.time() - (time.monotonic() - entry.began / 1000), 3)


def command(entry: Entry, given: Facts) -> list[str]:
    """What it was started with, ENTRYPOINT and CMD as docker combines them."""
    options = entry.step["options"]
    config = image(entry, given).get("config") or {}
    own, arguments = options.get("entrypoint"), options.get("command")
    entrypoint = own if own is not None else config.get("Entrypoint") or []
    if arguments is None:
        arguments = [] if own is not None else config.get("Cmd") or []
    return [*entrypoint, *arguments]


def image(entry: Entry, given: Facts) -> Facts:
    """The facts about the image that a container was started from."""
    found: Facts = given.get("images", {}).get(entry.step["options"].get("image") or given.get("image"), {})
    return found


def labels(entry: Entry, given: Facts) -> dict[str, str]:
    """The image's labels, and the container's own, which win."""
    config = image(entry, given).get("config") or {}
    own = entry.step["options"].get("labels") or {}
    return {**(config.get("Labels") or {}), **own}


def environment(entry: Entry, given: Facts) -> dict[str, str]:
    """The variables that image and pod file set; ``***`` for those whose names say that they are secret."""
    config = image(entry, given).get("config") or {}
    pairs = [str(pair).partition("=") for pair in config.get("Env") or ()]
    whole = {name: text for name, _, text in pairs} | (entry.step["options"].get("env") or {})
    return {name: "***" if any(word in name.upper() for word in _SECRET) else text for name, text in whole.items()}


def health(entry: Entry) -> str | None:
    """starting, healthy or unhealthy, as its live probe shows it; None: it has no probe, or that has ended."""
    process = entry.facts.get("prober")
    if not process or not alive(process["pid"], process["start"]):
        return None
    try:
        with open(f"/proc/{process['pid']}/comm", encoding="utf-8") as file:
            word, _, state = file.read().strip().partition(" ")
    except OSError:
        return None
    return state if word == "probe" and state else "starting"


def mounts(entry: Entry, given: Facts) -> list[dict[str, Any]]:
    """What is mounted into it beyond what every container has."""
    options = entry.step["options"]
    told = [
        {"source": mount.get("hostPath"), "target": mount["containerPath"], "options": mount.get("options", [])}
        for mount in given.get("mounts", ())
    ]
    for text in options.get("volumes") or ():
        source, _, rest = text.rpartition(":/")
        target, _, words = rest.partition(":")
        told.append({"source": source or None, "target": f"/{target}", "options": words.split(",") if words else []})
    for text in options.get("tmpfs") or ():
        target, _, words = text.partition(":")
        told.append({"source": "tmpfs", "target": target, "options": words.split(",") if words else []})
    return told


def limits(entry: Entry, pid: int | None) -> dict[str, Any]:
    """Limits as they are now, by its cgroup where it has one of its own, else as the pod file says; None: no limit."""
    options = entry.step["options"]
    found: dict[str, Any] = {
        "memory": options.get("memory") or None,
        "cpus": options.get("cpus") or None,
        "pids": options.get("pids") or None,
    }
    for path in _own_cgroups(pid, entry.step["name"]) if pid else ():
        for key, file in (("memory", "memory.max"), ("memory", "memory.limit_in_bytes"), ("pids", "pids.max")):
            if (word := _word(f"{path}/{file}")) is not None:
                # v1 says "no limit" as the largest number of pages.
                found[key] = int(word) if word.isdigit() and int(word) < 1 << 62 else None
        quota, _, period = (_word(f"{path}/cpu.max") or "").partition(" ")
        if quota.isdigit() and period.isdigit():
            found["cpus"] = int(quota) / int(period)
        elif (word := _word(f"{path}/cpu.cfs_quota_us")) and word.isdigit():
            found["cpus"] = int(word) / int(_word(f"{path}/cpu.cfs_period_us") or 100_000)
    return found


def _own_cgroups(pid: int, name: str) -> list[str]:
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            rows = [row.rstrip("\n").split(":", 2) for row in file]
    except OSError:
        return []
    paths = []
    for number, controllers, path in rows:
        if os.path.basename(path) == name or path.startswith("/podrun/"):
            unified = _CGROUPS if os.path.exists(f"{_CGROUPS}/cgroup.controllers") else f"{_CGROUPS}/unified"
            paths.append(f"{unified}{path}" if number == "0" else f"{_CGROUPS}/{controllers}{path}")
    return paths


def _word(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return None


def is_frozen(pid: int | None, name: str) -> bool:
    """Whether it is paused."""
    for path in _own_cgroups(pid, name) if pid else ():
        if _word(f"{path}/cgroup.freeze") == "1" or (_word(f"{path}/freezer.state") or "").startswith("FR"):
            return True
    return False


def ports(given: Facts) -> list[str]:
    """The published ports: "127.0.0.1:8080->80/tcp"."""
    found = []
    for row in given.get("published", ()):
        ip = f"[{row['ip']}]" if ":" in row["ip"] else row["ip"]
        found.append(f"{ip}:{row['host']}->{row['port']}/{row['proto']}")
    return found


def restarts(unit: str) -> int | None:
    """How often systemd has restarted a unit; None where that is not known (systemd.service(5), NRestarts)."""
    import subprocess

    try:
        argv = ["systemctl", "show", "--value", "--property=NRestarts", unit]
        told = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return int(told) if told.isdigit() else None


def networks(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The networks of a pod, in order: name, addresses."""
    return [
        {"name": _network(entry.step["options"]), "addresses": entry.facts["addresses"]}
        for entry in entries
        if entry.facts.get("addresses")
    ]


def _network(options: Mapping[str, Any]) -> str:
    mode = options.get("mode", "bridge")
    return str(options.get("bridge") or mode) if mode == "bridge" else str(mode)
