"""``podrun doctor``: what this host has and lacks for pods, one line each, with what to do about it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import click

from podrun import bundle
from podrun.cli.output import Guarded, human, printed, say
from podrun.engine import hook_loader
from podrun.engine import journal as journals
from podrun.engine.state import state
from podrun.errors import CANNOT_CREATE, NOT_ALLOWED
from podrun.hook_extras import Collects, Diagnoses, Finding
from podrun.host import Host
from podrun.launcher.commands import host_of
from podrun.systemd import generator

#: Less than this many bytes free in the store is worth a warning; with less than a sixteenth of it nothing starts.
_ROOM = 1 << 30


def findings(host: Host) -> Iterator[Finding]:
    """All checks, in the order of a start. They change nothing."""
    yield Finding("ok", f"Linux {os.uname().release}")
    if os.geteuid():
        yield Finding("fail", "not root: pods cannot be started, and the rest cannot be seen", "sudo", NOT_ALLOWED)
        return
    yield _systemd()
    yield _cgroups()
    if generator.is_stale():
        yield Finding(
            "warn",
            f"{generator.PATH} was made by another version of podrun, or for other hooks",
            "podrun unit --install-generator",
        )
    if told := bundle.problem():
        yield Finding("warn", f"{told}; a start takes 2 ms longer", f"rm {bundle.PATH}")
    yield from _room(host)
    for name, source, by in hook_loader.hidden():
        yield Finding("warn", f"the hook {name} of {source} is never used: {by} has this name", "give it another name")
    for _, diagnosing in hook_loader.offering(Diagnoses):
        yield from diagnosing.diagnose(host.root, host.run)
    for line in stale(host):
        yield Finding("warn", f"unused: {line}", "podrun gc")


def stale(host: Host) -> list[str]:
    """What ``gc`` would undo or remove."""
    states = [(name, state(host.run, name)) for name in journals.pods(host.run)]
    found = [f"{name}: {state}" for name, state in states if state in ("dead", "failed", "absent")]
    for hook, collecting in hook_loader.offering(Collects):
        lines = collecting.collect(host.root, host.run, {name for name, _ in states}, True)
        found += [f"{hook}: {line}" for line in lines]
    return found


def _systemd() -> Finding:
    if os.path.isdir("/run/systemd/system"):  # sd_booted(3)
        return Finding("ok", "systemd is process 1")
    return Finding("warn", "systemd is not process 1: pods of 'up -d' have no unit, none starts at boot")


def _cgroups() -> Finding:
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        return Finding("ok", "cgroup v2")
    if os.path.exists("/sys/fs/cgroup/unified"):
        return Finding("ok", "cgroup v1 with v2 beside it (hybrid)", "systemd.unified_cgroup_hierarchy=1")
    if os.path.isdir("/sys/fs/cgroup/pids"):
        return Finding("ok", "cgroup v1", "systemd.unified_cgroup_hierarchy=1")
    return Finding(
        "warn", "no cgroups are mounted: containers have no limits", "mount -t cgroup2 cgroup2 /sys/fs/cgroup"
    )


def _room(host: Host) -> Iterator[Finding]:
    for place, hint in ((host.root, "podrun image prune"), (host.run, "")):
        where = place
        while not os.path.exists(where):
            where = os.path.dirname(where)
        found = os.statvfs(where)
        free = found.f_bavail * found.f_frsize
        least = _ROOM if place == host.root else _ROOM // 64
        what = f"{place}: {human(free)} free"
        if found.f_flag & os.ST_RDONLY:
            yield Finding("fail", f"{place} is read-only", "", CANNOT_CREATE)
        elif free < least // 16 or (found.f_files and not found.f_favail):
            yield Finding("fail", f"{what}, {found.f_favail} files", hint, CANNOT_CREATE)
        elif free < least:
            yield Finding("warn", what, hint)
        else:
            yield Finding("ok", what)


@click.command(name="doctor", cls=Guarded)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="How to print.")
@click.pass_context
def command(ctx: click.Context, form: str) -> int:
    """Say what this host has and lacks, and what to do about it; exits 0 when nothing fails."""
    found = list(findings(host_of(ctx.obj)))
    if form == "json":
        printed([{"state": one.state, "what": one.what, "hint": one.hint} for one in found], form)
    else:
        for one in found:
            say(f"{one.state:4}  {one.what}{'; ' + one.hint if one.hint else ''}")
    return next((one.code for one in found if one.state == "fail"), 0)
