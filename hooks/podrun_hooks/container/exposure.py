"""What a container step exposes: for ``podrun check --security``."""

from __future__ import annotations

import os
import stat

from podrun.hook_extras import Exposure
from podrun_hooks.container.spec import DEFAULT_CAPABILITIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from podrun.hook import Step

#: With one of these, root in a container is equivalent to root on the host (capabilities(7)).
_HOSTS_ROOT = frozenset([
    "SYS_ADMIN", "SYS_MODULE", "SYS_RAWIO", "SYS_PTRACE", "SYS_BOOT", "DAC_READ_SEARCH", "BPF", "PERFMON",
    "MAC_ADMIN", "MAC_OVERRIDE", "CHECKPOINT_RESTORE", "SYSLOG",
])  # fmt: skip
#: Words in the names of variables that commonly hold secrets.
_SECRETS = ("PASSWORD", "PASSWD", "SECRET", "TOKEN", "API_KEY", "APIKEY", "PRIVATE_KEY", "CREDENTIAL")


def of(step: Step) -> Iterator[Exposure]:
    """The exposures, the most serious first within each subject."""
    options = step.options
    own_ids = step.pod.userns == "auto"
    yield from _user(options, own_ids=own_ids)
    yield from _capabilities(options, own_ids=own_ids)
    if options.seccomp == "unconfined":
        yield Exposure("no seccomp filter: every system call is allowed", 2.0, "leave out seccomp")
    elif options.nested_userns:
        yield Exposure("it may create user namespaces and be root in them", 0.8, "leave out nested_userns")
    if not options.no_new_privileges:
        yield Exposure("setuid programs in it gain privileges", 0.5, "leave out no_new_privileges")
    if options.pid == "host":
        yield Exposure("it sees the host's processes, and its root can signal them", 2.0, "leave out pid")
    if options.ipc == "host":
        yield Exposure("it shares memory with the host's programs", 1.0, "leave out ipc")
    if options.unmask:
        yield Exposure(f"masked paths of /proc and /sys are open: {', '.join(options.unmask)}", 1.0, "leave out unmask")
    yield from _devices(options.devices)
    if options.device_rules:
        what = f"it may make and use devices of the host: {', '.join(options.device_rules)}"
        yield Exposure(what, 2.0, "name the devices in devices")
    yield from _volumes(options.volumes)
    for name in sorted(options.env):
        if any(word in name.upper() for word in _SECRETS) and options.env[name]:
            what = f"{name} looks like a secret: every process of the container sees it, and the journal keeps it"
            yield Exposure(what, 0.8, "a storage step with source = 'file:' and a credential")
    if not options.read_only:
        yield Exposure("its programs can be changed: the root is writable", 0.3, "read_only = true, with tmpfs")
    if not options.memory:
        yield Exposure("it may use up the host's memory", 0.3, "memory = '512M'")
    if options.pids < 0:
        yield Exposure("it may start as many processes as the host has room for", 0.3, "leave out pids")
    if not (options.apparmor or options.selinux):
        yield Exposure("no AppArmor profile or SELinux label confines it", 0.2, "apparmor or selinux, where active")
    if options.log == "direct":
        yield Exposure("it is given podrun's own output, which may be a file or a terminal", 0.3, "leave out log")


def _user(options: Any, *, own_ids: bool) -> Iterator[Exposure]:
    name = options.user.partition(":")[0]
    if name in ("", "0", "root"):
        who = "it runs as the image's USER, by default root" if not name else "it runs as root"
        yield Exposure(f"{who}, in a user namespace of its own" if own_ids else who, 0.3 if own_ids else 1.0, "user")
    if not own_ids:
        yield Exposure("its ids are the host's: what breaks out is that user there", 1.0, 'userns = "auto" in [pod]')


def _capabilities(options: Any, *, own_ids: bool) -> Iterator[Exposure]:
    add = {*options.capabilities.add, *options.cap_add}
    drop = {*options.capabilities.drop, *options.cap_drop}
    heavy = sorted(add & (_HOSTS_ROOT | {"ALL"}))
    if heavy:
        what = f"capabilities {', '.join(heavy)}" + ("" if own_ids else ": equivalent to root on the host")
        yield Exposure(what, 1.0 if own_ids else 4.0, "leave them out")
    others = sorted(add - _HOSTS_ROOT - {"ALL"} - DEFAULT_CAPABILITIES)
    if others:
        yield Exposure(f"more capabilities than usual: {', '.join(others)}", 0.5 * len(others), "leave them out")
    kept = DEFAULT_CAPABILITIES - drop if "ALL" not in drop else frozenset()
    if kept:
        yield Exposure(f"root in it keeps {len(kept)} capabilities", 0.4, 'cap_drop = ["ALL"], and add what it needs')


def _devices(devices: list[str]) -> Iterator[Exposure]:
    for text in devices:
        if not text.startswith("/"):
            yield Exposure(f"what the host's CDI specification of {text} brings", 1.0, "leave it out")
            continue
        path = text.partition(":")[0]
        try:
            block = stat.S_ISBLK(os.stat(path).st_mode)
        except OSError:
            block = False
        heavy = block or path in ("/dev/mem", "/dev/kmem", "/dev/port")
        yield Exposure(f"the host's {path}", 4.0 if heavy else 0.4, "leave it out")


def _volumes(volumes: list[str]) -> Iterator[Exposure]:
    from podrun_hooks.storage import exposure
    from podrun_hooks.storage.docker_spelling import docker_source

    for text in filter(lambda text: ":" in text, volumes):
        options = text.rpartition(":")[2].split(",") if text.count(":") > 1 else []
        yield from exposure.of_path(docker_source(text), read_only="ro" in options)
