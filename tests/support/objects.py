"""Everything that a pod is made of, listed from the kernel and the file system: what a test compares before and after."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

from podrun.host import tag

#: Shared by all pods of a run directory, and meant to stay.
LASTING = ("/ended/", "/history/", "/requests/", "/units/", "/locks/", "/images/", "/seccomp/", "/volumes/", "/parsed/")


def _lines(*argv: str) -> list[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()


def processes(*marks: str) -> list[str]:
    """Processes whose command line or mounts name one of the paths in ``marks``, zombies not counted.

    Of mounts, those that a container has: every process of the host sees what is mounted on the paths themselves.
    """
    found = []
    wanted = [mark.encode() for mark in marks]
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            words, mounts = (Path(f"/proc/{entry}/{name}").read_bytes() for name in ("cmdline", "mountinfo"))
        except OSError:
            continue
        if any(mark in words or (mark in mounts and _inside(mark, mounts)) for mark in wanted):
            found.append(f"process {entry}: {words.replace(bytes(1), b' ').decode(errors='replace')}")
    return found


def _inside(mark: bytes, mounts: bytes) -> bool:
    """Whether something of that path is mounted on another path (the fifth field of a line, proc_pid_mountinfo(5))."""
    return any(mark in line and mark not in line.split()[4] for line in mounts.splitlines())


def listing(run: Path, root: Path) -> set[str]:
    """The objects of the pods of one podrun: what carries the hash of its run directory, or lies in its directories."""
    own = tag("", str(run))  # "podrun-3fa2-": other podruns may be at work beside this one
    marks = (f"{run}/", f"{root}/", own)
    seen = {f"netns {line.split()[0]}" for line in _lines("ip", "netns", "list") if line.startswith(own)}
    for link in json.loads("".join(_lines("ip", "-json", "link", "show")) or "[]"):
        if link.get("ifalias", "").startswith(own):
            seen.add(f"link {link['ifname']} of {link['ifalias']}")
    seen |= {f"mount {line}" for line in _lines("findmnt", "-rno", "TARGET,SOURCE") if any(m in line for m in marks)}
    for table in _lines("nft", "list", "tables"):
        if table.endswith(own.rstrip("-")):
            rules = _lines("nft", "-j", "list", "table", *table.split()[1:])
            for item in json.loads("".join(rules) or '{"nftables":[]}')["nftables"]:
                for element in item.get("map", item.get("set", {})).get("elem", []):
                    seen.add(f"nft element {json.dumps(element)}")
    for directory, names, _ in os.walk("/sys/fs/cgroup"):
        seen |= {f"cgroup {directory}/{name}" for name in names if own in name}
    for place in (run, root):
        for directory, names, files in os.walk(place):
            if any(lasting in f"{directory}/" for lasting in LASTING):
                continue
            seen |= {
                f"file {directory}/{name}" for name in (*files, *names) if _is_a_pods(f"{directory}/{name}", place)
            }
    return seen | set(processes(*marks))


def _is_a_pods(path: str, place: Path) -> bool:
    """False for what a podrun keeps whether it has pods or not: empty directories, what has happened (events)."""
    if path in (f"{place}/events", f"{place}/events.1"):
        return False
    return not os.path.isdir(path) or "/pods/" in path.removeprefix(str(place)) or "/runtime/" in path


def settled(run: Path, root: Path, before: set[str], patience: float = 3.0) -> set[str]:
    """What is there and was not before, once the kernel has had time to drop what it drops later (links of a netns)."""
    deadline = time.monotonic() + patience
    while (left := listing(run, root) - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
