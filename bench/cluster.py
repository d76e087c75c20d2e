"""How long a cluster takes to decide: pods as a configuration, crm reading it, Pacemaker's scheduler placing them.

No host is booted: crm(8) and crm_simulate(8) work on a file. ``./dev bench cluster`` runs it.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from podrun.cluster import agent, configuration
from podrun.cluster.pods import Placement, Pod

#: Pods and hosts.
SIZES = ((150, 3), (500, 16))


def threes(count: int, hosts: int) -> list[Pod]:
    """A global one, and the others in threes: a service, one beside it, one apart from it; every tenth wants an ssd."""
    found = [Pod("utils", "", Placement(everywhere=True))]
    for number in range(count - 1):
        group, part = divmod(number, 3)
        metadata = {"disk": "ssd"} if number % 10 == 0 else {}
        beside = f"db{group}" if part == 1 else "utils"
        conflicts = (f"db{group}",) if part == 2 else ()
        name = ("db", "web", "backup")[part]
        found.append(Pod(f"{name}{group}", "", Placement(conflicts, machine_of=beside, metadata=metadata)))
    return found


def instances(count: int, hosts: int) -> list[Pod]:
    """Services of as many instances as there are hosts, each instance on another one."""
    found = [Pod("utils", "", Placement(everywhere=True))]
    for number in range(count - 1):
        service = number // hosts
        found.append(Pod(f"web{service}@{number % hosts}", "", Placement((f"web{service}@*",), machine_of="utils")))
    return found


def loaded(text: str, hosts: int, home: Path) -> tuple[Path, float]:
    """The configuration as a file that crm has made, and the seconds that took."""
    empty = subprocess.run(["cibadmin", "--empty"], capture_output=True, text=True, check=True).stdout
    ssd = '<instance_attributes id="a{0}"><nvpair id="b{0}" name="disk" value="ssd"/></instance_attributes>'
    nodes = "".join(f'<node id="{n}" uname="n{n}">{ssd.format(n) if n % 2 else ""}</node>' for n in range(1, hosts + 1))
    cib = home / f"{hosts}.xml"
    cib.write_text(empty.replace("<nodes/>", f"<nodes>{nodes}</nodes>"))
    (home / "pods.crm").write_text(text)
    began = time.monotonic()
    subprocess.run(
        ["crm", "-F", "configure", "load", "update", home / "pods.crm"],
        env={**os.environ, "CIB_file": str(cib), "TERM": "dumb"},
        check=False,
        capture_output=True,
        timeout=600,
    )
    return cib, time.monotonic() - began


def simulated(cib: Path, hosts: int, *words: str) -> tuple[str, float]:
    argv = ["crm_simulate", "--xml-file", str(cib), "--quorum=true", *words]
    began = time.monotonic()
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
    return done.stdout, time.monotonic() - began


def main() -> None:
    place = Path(agent.AGENT)
    there = place.exists()
    if not there:
        # crm asks the agent for its meta-data.
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(agent.SOURCE, place)
        place.chmod(0o755)
    home = Path(tempfile.mkdtemp(prefix="podrun-bench-"))
    try:
        for (count, hosts), kind in itertools.product(SIZES, (threes, instances)):
            began = time.monotonic()
            statements = configuration.statements(kind(count, hosts), fencing=False)
            text = configuration.text(statements)
            exported = time.monotonic() - began
            cib, load = loaded(text, hosts, home)
            ups = [f"--node-up=n{n}" for n in range(1, hosts + 1)]
            found = {
                "kind": kind.__name__,
                "pods": count,
                "hosts": hosts,
                "statements": len(statements),
                "export s": round(exported, 3),
                "crm load s": round(load, 1),
                "decide to start all s": round(simulated(cib, hosts, "--run", *ups)[1], 1),
            }
            if hosts <= 3:
                # crm_simulate carries out what it decided, in the file; that alone takes minutes for 500 pods.
                started = home / "started.xml"
                simulated(cib, hosts, *ups, "--simulate", "--save-output", str(started))
                found["decide that nothing is to do s"] = round(simulated(started, hosts, "--run")[1], 2)
                lost, seconds = simulated(started, hosts, "--node-down=n1", "--simulate")
                found["decide when a host is lost, and carry it out s"] = round(seconds, 2)
                found["pods that it moves then"] = sum(
                    lost.count(f"* {word} ") for word in ("Start", "Move", "Recover")
                )
            print(json.dumps(found))
    finally:
        shutil.rmtree(home)
        if not there:
            shutil.rmtree(place.parent)


if __name__ == "__main__":
    main()
