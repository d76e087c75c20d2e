"""What makes a container impossible on this host, or its options contradict each other, before anything is created."""

from __future__ import annotations

import os

from podrun.errors import NOT_ALLOWED, UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook import Problem
from podrun_hooks.container import limits, mounts
from podrun_hooks.container import runtime as runtimes
from podrun_hooks.container.options import is_anonymous, named_twice
from podrun_hooks.support import subprocesses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from podrun.hook import Step

#: Names that a container would collide with: the launcher's cgroup, the pod segment, the mounts, the terminal's socket.
_TAKEN = ("podrun", "pod", "mnt", "console")


def problems(step: Step) -> Iterator[Problem]:
    """All that is wrong with a container step."""
    yield from _name(step.name)
    if os.geteuid():
        yield Problem("containers need root", NOT_ALLOWED)
    yield from _limits(step.options)
    yield from _programs(step.options)
    yield from _labels(step.options)
    yield from _answers(step.options)
    yield from _files(step.options)
    if step.pod.userns == "auto":
        yield from _namespaces(step.options)
    yield from _volumes(step)


def of_chain(step: Step, before: Sequence[Step]) -> Iterator[Problem]:
    """A container that may change the pod's network may also change where its ambassadors lead."""
    options = step.options
    added = {*options.capabilities.add, *options.cap_add}
    maps = [other for other in before if other.hook == "ambassador" and getattr(other.options, "via", "") == "nft"]
    if maps and added & {"NET_ADMIN", "ALL"}:
        what = f"with NET_ADMIN it can change where {maps[0].label} leads: that is advice for it then, not policy"
        yield Problem(what, NOT_ALLOWED, fatal=False, key="cap_add")


def _name(name: str) -> Iterator[Problem]:
    plain = name.replace("-", "").replace("_", "")
    if name in _TAKEN or len(name) > 63 or not (plain.isalnum() and plain.isascii() and name[0].isalnum()):
        what = f"a container cannot be called {name!r}"
        yield Problem(what, WRONG_FILE, "letters, digits, - and _", key="name")


def _limits(options: Any) -> Iterator[Problem]:
    wanted = {"memory": options.memory, "cpu": options.cpus, "pids": options.pids}
    for name in limits.missing_controllers([name for name, limit in wanted.items() if limit]):
        what = f"the kernel has no cgroup controller {name} (or it is turned off): the limit cannot be enforced"
        yield Problem(what, UNAVAILABLE, fatal=False, key={"cpu": "cpus"}.get(name, name))
    for key, what, hint in limits.problems(options):
        yield Problem(what, WRONG_FILE, hint, key=key)


def _programs(options: Any) -> Iterator[Problem]:
    for name in ("runtime", "catatonit") if options.init else ("runtime",):
        try:
            runtimes.choose(options.runtime) if name == "runtime" else subprocesses.find(name, name)
        except Failure as failure:
            yield Problem(failure.what, UNAVAILABLE, failure.hint)


def _labels(options: Any) -> Iterator[Problem]:
    """Profiles and labels that this host does not know."""
    if options.apparmor and options.apparmor != "unconfined":
        try:
            with open("/sys/kernel/security/apparmor/profiles", encoding="utf-8") as file:
                known = options.apparmor in {line.rpartition(" (")[0] for line in file}
            what, hint = f"AppArmor has no profile {options.apparmor}", "apparmor_parser -r FILE"
        except OSError:
            known, what, hint = False, "AppArmor is not active on this host", "leave out apparmor"
        if not known:
            yield Problem(what, UNAVAILABLE, hint, key="apparmor")
    for key in ("selinux", "selinux_mount"):
        if getattr(options, key) and not os.path.exists("/sys/fs/selinux/enforce"):
            yield Problem("SELinux is not active on this host", UNAVAILABLE, f"leave out {key}", key=key)


def _answers(options: Any) -> Iterator[Problem]:
    if options.live and options.ready and options.ready.notify == "direct":
        what = "live and notify = 'direct' would both answer the watchdog: neither could be missed"
        yield Problem(what, WRONG_FILE, "leave out one")


def _files(options: Any) -> Iterator[Problem]:
    """What the host has to have for the container's options."""
    for path in options.env_files:
        if not os.path.isfile(path):
            yield Problem(f"{path}: there is no such file", WRONG_FILE, key="env_files")
    if named := [text for text in options.devices if not text.startswith("/")]:
        from podrun_hooks.container import cdi

        try:
            cdi.edits(named)
        except Failure as failure:
            yield Problem(failure.what, failure.code, failure.hint, key="devices")
    for text in options.devices:
        if text.startswith("/") and not os.path.exists(source := text.partition(":")[0]):
            yield Problem(f"the host has no {source}", UNAVAILABLE, key="devices")
    if options.tz:
        try:
            mounts.zone_file(options.tz)
        except Failure as failure:
            yield Problem(failure.what, failure.code, failure.hint, key="tz")


def _namespaces(options: Any) -> Iterator[Problem]:
    """The kernel mounts /proc, and message queues, for whoever owns the namespace that they show."""
    for kind in ("pid", "ipc"):
        if getattr(options, kind) == "host":
            what = f'{kind} = "host" is not for a pod with userns = "auto"'
            yield Problem(what, WRONG_FILE, 'userns = "host"', key=kind)


def _volumes(step: Step) -> Iterator[Problem]:
    """Sources that are not there; in a pod with a user namespace also those whose owners it could not have."""
    if not step.options.volumes:
        return
    from podrun_hooks.storage.docker_spelling import docker_source, missing
    from podrun_hooks.support import userns

    if twice := named_twice(step.options):
        yield Problem(f"{twice} has two mounts", WRONG_FILE, "leave out one", key="volumes")
    for text in step.options.volumes:
        if is_anonymous(text):
            continue
        source = docker_source(text)
        yield from (found._replace(key="volumes") for found in missing(source))
        if step.pod.userns == "auto" and source.startswith("/"):
            read_only = "ro" in text.rpartition(":")[2].split(",")
            if what := userns.refusal(source, read_only=read_only):
                yield Problem(what, UNAVAILABLE, 'userns = "host" in [pod]', key="volumes")
