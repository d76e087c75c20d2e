"""The OCI runtime configuration: what image, options and facts say, put together as docker would."""

from __future__ import annotations

import os

from podrun import ownership
from podrun.errors import CANNOT_EXECUTE, WRONG_FILE, Failure, code_of
from podrun.hook import Facts
from podrun.options import Wrong
from podrun_hooks.container import devices, executables, limits, mounts, users
from podrun_hooks.container.options import CAPABILITIES, signal_number
from podrun_hooks.container.paths import PATH
from podrun_hooks.support import userns
from podrun_hooks.support.rooted_tree import Elsewhere, plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from podrun.hook import Step
    from podrun_hooks.container.cgroups import Isolation
    from podrun_hooks.container.mounts import Mounts
    from podrun_hooks.container.users import User
    from podrun_hooks.support.rooted_tree import Tree
    from podrun_hooks.support.userns import Mapping as IdMapping


#: What docker leaves to root in a container, without NET_RAW: who writes frames of its own pretends to be a neighbour,
#: and ping does without (net.ipv4.ping_group_range).
DEFAULT_CAPABILITIES = frozenset([
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE",
    "SYS_CHROOT", "MKNOD", "AUDIT_WRITE", "SETFCAP",
])  # fmt: skip

# The union of what crun and podman hide and protect by default.
_MASKED = [
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/dev/block",
    "/sys/devices/virtual/powercap", "/sys/firmware", "/sys/fs/selinux",
]  # fmt: skip
_READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def capabilities(options: Any, isolation: Isolation) -> frozenset[str]:
    """The capability names (without CAP_) that options leave: docker's fourteen, or fewer.

    Without device rules CAP_MKNOD is the host's disks: it is given only when it is asked for by its name.
    """
    add = {*options.capabilities.add, *options.cap_add}
    drop = {*options.capabilities.drop, *options.cap_drop}
    given = set(DEFAULT_CAPABILITIES)
    if not isolation.devices_ruled:
        given.discard("MKNOD")
    if "ALL" in drop:
        given = set()
    if "ALL" in add:
        given = bounding()
    return frozenset((given - drop) | (add - {"ALL"}))


def bounding() -> set[str]:
    """The capabilities that podrun itself can hand on: those of its bounding set (capabilities(7))."""
    with open("/proc/self/status", "rb", buffering=0) as file:
        whole = int(file.read().partition(b"CapBnd:")[2].split(None, 1)[0], 16)
    return {name for number, name in enumerate(CAPABILITIES) if whole >> number & 1}


def arguments(image: Mapping[str, Any], options: Any) -> list[str]:
    """ENTRYPOINT and CMD as docker combines them. Raises Failure (WRONG_FILE) when there is nothing to run."""
    command = options.command
    if options.entrypoint is None:
        entrypoint = _words(image.get("Entrypoint"))
        command = _words(image.get("Cmd")) if command is None else command
    else:
        entrypoint = options.entrypoint
    # docker's way to say that there is none.
    entrypoint = [] if entrypoint == [""] else entrypoint
    argv = [*entrypoint, *(command or ())]
    if not argv:
        raise Failure("there is no command to run", code=WRONG_FILE, hint="the image has none: set command")
    return argv


def _words(value: Any) -> list[str]:
    """Entrypoint or Cmd; a string is one word, as docker takes it."""
    return [value] if type(value) is str else list(value or ())


def environment(image: Mapping[str, Any], options: Any, facts: Facts, hostname: str, home: str) -> dict[str, str]:
    """The image's variables, over them the injected ones, over them the pod file's."""
    variables = {"PATH": PATH, "HOSTNAME": hostname}
    for pair in (*(image.get("Env") or ()), *facts.get("env", ())):
        name, equals, value = pair.partition("=")
        if equals:
            variables[name] = value
    for path in options.env_files:
        variables.update(env_file(path))
    variables.update(options.env)
    if options.tz:
        variables.setdefault("TZ", f":{mounts.LOCALTIME}")
    variables.setdefault("HOME", home)
    return variables


def env_file(path: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of a file in docker's form: KEY=VALUE a line, no quotes; KEY alone takes podrun's own.

    Raises Failure (WRONG_FILE).
    """
    variables = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        line = line.lstrip()
        name, equals, value = line.partition("=")
        if not line or line.startswith("#"):
            continue
        if not name or " " in name or "\t" in name:
            raise Failure(f"{path}:{number}: expected KEY=VALUE, not {line[:80]!r}", code=WRONG_FILE)
        if equals:
            variables[name] = value
        elif name in environ:
            variables[name] = environ[name]
    return variables


def _text(path: str) -> str:
    try:
        return ownership.read_any(path).decode("utf-8-sig")
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", code=code_of(error)) from None
    except UnicodeDecodeError:
        raise Failure(f"{path} is not UTF-8", code=WRONG_FILE) from None


def process_capabilities(user: User, names: Sequence[str]) -> dict[str, Sequence[str]]:
    """OCI's capability sets: ``names`` (with CAP_) bound what there is; effective are they for root alone.

    For others the permitted set stays until execve(2), which empties it: it is what a program with file capabilities
    may still gain under no_new_privs (cap_bprm_creds_from_file() in the kernel's security/commoncap.c). The effective
    set would count when the kernel asks whether the user may execute the program at all.
    """
    return {"bounding": names, "effective": names if user.uid == 0 else [], "permitted": names}


def refuse_bytes(words: Sequence[str]) -> None:
    """Raises Failure (WRONG_FILE) for a word that is not UTF-8: the configuration is JSON, which holds no other."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise Failure(f"{word!r} is not UTF-8", code=WRONG_FILE, hint="a file can hold it, or base64") from None


def stop_signal(image: Mapping[str, Any], options: Any, report: Callable[[str], None]) -> int:
    """The number of the signal that asks the payload to end."""
    if options.stop_signal:
        return int(options.stop_signal)
    wanted = image.get("StopSignal") or "TERM"
    try:
        return signal_number(wanted)
    except Wrong:
        report(f"the image's STOPSIGNAL {str(wanted)[:40]!r} is not a signal: SIGTERM will ask it to end")
        return 15


def build(
    step: Step,
    facts: Facts,
    image: Facts,
    tree: Tree,
    placed: Mounts,
    isolation: Isolation,
    listen: Sequence[str],
    watchdog: float = 0.0,
) -> dict[str, Any]:
    """The configuration for the runtime; makes the working directory in ``tree`` on the way.

    ``image``: one entry of the fact "images". ``placed``: what :func:`mounts.wanted` made. ``listen``: variables of
    socket activation. ``watchdog``: seconds after which systemd misses a payload that speaks to it. Raises Failure.
    """
    options = step.options
    config: Mapping[str, Any] = image.get("config") or {}
    netns = facts.get("netns", "")
    hostname = options.hostname or facts.get("hostname") or (os.uname().nodename if netns == "host" else _host(step))
    if placed.mapping and netns == "host":
        what = 'a pod with userns = "auto" cannot be in the host\'s network'
        raise Failure(what, code=WRONG_FILE, hint='userns = "host" in [pod]')
    user = users.resolve(options.user or config.get("User") or "", tree, of_image=not options.user)
    more_groups = [*(users.group(word, tree) for word in options.groups), *facts.get("additionalGids", ())]
    argv = arguments(config, options)
    variables = environment(config, options, facts, hostname, user.home)
    if step.pod.console:
        variables.setdefault("TERM", os.environ.get("TERM", "xterm"))
    if options.ready and options.ready.notify:
        variables["NOTIFY_SOCKET"] = f"{mounts.NOTIFY}/socket"
        if options.ready.notify == "direct":
            variables.update(_direct(user, options, watchdog))
    refuse_bytes([*argv, *variables.values()])
    workdir = plain(options.workdir or config.get("WorkingDir") or "/")
    with userns.AsRootOf(placed.mapping):
        _make_workdir(tree, workdir)
    names = [f"CAP_{name}" for name in sorted(capabilities(options, isolation))]
    who = user._replace(groups=[*user.groups, *more_groups])
    base = placed.mapping.base if placed.mapping else None
    executables.find_command(tree, argv, variables, workdir, who, names, base)
    labels = {key: value for key, value in (config.get("Labels") or {}).items() if type(value) is str}
    annotations = {**labels, **facts.get("annotations", {}), **options.labels, **options.annotations}
    nodes = [*facts.get("deviceNodes", ()), *devices.asked_for(options.devices)]
    open_paths = "ALL" in options.unmask
    return {
        "ociVersion": "1.0.2",
        "root": {"path": placed.root, "readonly": options.read_only},
        "hostname": hostname,
        "process": {
            "terminal": bool(step.pod.console),
            "user": {
                "uid": user.uid,
                "gid": user.gid,
                **({"umask": int(options.umask, 8)} if options.umask else {}),
                # The primary group is among them: dropping it would gain what "others" may do (CVE-2022-36109).
                "additionalGids": [*dict.fromkeys([user.gid, *user.groups, *more_groups])],
            },
            "args": [mounts.INIT, "--", *argv] if options.init else argv,
            "env": [*(f"{name}={value}" for name, value in variables.items()), *listen],
            "cwd": workdir,
            "capabilities": process_capabilities(user, names),
            **({"apparmorProfile": options.apparmor} if options.apparmor else {}),
            **({"selinuxLabel": options.selinux} if options.selinux else {}),
            "noNewPrivileges": options.no_new_privileges,
            "rlimits": limits.rlimits(options.ulimits),
            **({"oomScoreAdj": options.oom_score_adj} if options.oom_score_adj else {}),
        },
        "mounts": [*_system_mounts(options, isolation, placed.taken), *placed.oci],
        "hooks": _hooks(facts, argv[0], annotations, bool(options.volumes)),
        "annotations": annotations,
        "linux": {
            **({"mountLabel": options.selinux_mount} if options.selinux_mount else {}),
            "namespaces": _namespaces(netns, options, facts.get("userns")),
            **_mappings(placed.mapping),
            **_propagation(placed.oci),
            "maskedPaths": [
                *options.mask,
                *(path for path in _MASKED if not open_paths and path not in options.unmask),
            ],
            "readonlyPaths": [] if open_paths else [path for path in _READ_ONLY if path not in options.unmask],
            "devices": [devices.oci(node) for node in nodes],
            "sysctl": {**({} if netns else _sysctl(placed.mapping)), **options.sysctls},
            "resources": _resources(options, nodes, isolation),
            **({"cgroupsPath": isolation.cgroup} if isolation.cgroup else {}),
        },
    }


def _direct(user: User, options: Any, watchdog: float) -> dict[str, str]:
    """The variables of a payload that speaks to systemd itself (sd_watchdog_enabled(3)). Raises Failure for root.

    systemd takes MAINPID= of any process on the host from uid 0 (service_notify_message() in its service.c), and kills
    that one when the unit stops; from others it takes only processes of the unit's own cgroup.
    """
    if user.uid == 0:
        what = "notify = 'direct' would let root in the container have systemd stop any process of the host"
        hint = "give the container a user that is not root, or say notify = true"
        raise Failure(what, code=WRONG_FILE, hint=hint)
    if not watchdog:
        return {}
    # With catatonit in front the payload is not process 1.
    pid = {} if options.init else {"WATCHDOG_PID": "1"}
    return {"WATCHDOG_USEC": str(int(watchdog * 1e6)), **pid}


#: As in docker since 20.10: low ports and ping need no capability. Of the namespace that the runtime makes; the network
#: step sets them in its own, and one that the pod has joined is somebody else's.
_SYSCTL = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}


def _sysctl(mapping: IdMapping | None) -> dict[str, str]:
    """In a user namespace the runtime knows no group beyond the range."""
    return {**_SYSCTL, "net.ipv4.ping_group_range": f"0 {userns.SIZE - 1}"} if mapping else _SYSCTL


def _mappings(mapping: IdMapping | None) -> dict[str, Any]:
    if not mapping:
        return {}
    return {
        f"{kind}Mappings": [{"containerID": 0, "hostID": first, "size": userns.SIZE}]
        for kind, first in mapping.base._asdict().items()
    }


def _host(step: Step) -> str:
    return "".join(letter if letter.isalnum() or letter == "-" else "-" for letter in step.pod.name)[:63]


def refuse_workdir(workdir: str, elsewhere: Elsewhere) -> None:
    """Raises Failure (CANNOT_EXECUTE) for a working directory in /proc or /dev that may be a descriptor.

    /proc/self/fd/N, and /dev/fd/N, is whatever the runtime has open there (CVE-2024-21626).
    """
    where = plain(elsewhere.path)
    if where not in ("/proc", "/dev", "/dev/shm") and not where.startswith("/sys"):
        what = f"the working directory {workdir!r} leads to {where!r}"
        raise Failure(what, code=CANNOT_EXECUTE, hint="a container cannot start there")


def _make_workdir(tree: Tree, workdir: str) -> None:
    try:
        os.close(tree.make(workdir, directory=True)[0])
    except Elsewhere as elsewhere:
        refuse_workdir(workdir, elsewhere)
    except Failure as failure:
        raise Failure(f"the working directory {failure.what}", code=CANNOT_EXECUTE, hint=failure.hint) from None


def _namespaces(netns: str, options: Any, own: Mapping[str, Any] | None = None) -> list[dict[str, str]]:
    """A private namespace of each type but the network's, which the network step made, or which is the host's.

    ``own``: the fact "userns"; without it the user namespace is the host's.
    """
    hosts = {kind for kind in ("pid", "ipc") if getattr(options, kind) == "host"}
    namespaces = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup") if kind not in hosts]
    if own:
        namespaces.append({"type": "user", "path": own["path"]})
    if netns == "host":
        return namespaces
    return [*namespaces, {"type": "network", "path": netns} if netns else {"type": "network"}]


def _system_mounts(options: Any, isolation: Isolation, taken: set[str]) -> list[dict[str, Any]]:
    """What every container gets: /dev, /proc and /sys fresh, and what is in them unless something is injected there."""
    shut = ["nosuid", "noexec", "nodev"]
    left_out = ("/dev/shm", "/dev/mqueue") if options.ipc == "none" else ()
    mounts = [
        ("/proc", "proc", "proc", shut),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "noexec", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        ("/dev/shm", "tmpfs", "shm", [*shut, "mode=1777", f"size={options.shm_size}"]),
        ("/dev/mqueue", "mqueue", "mqueue", shut),
        ("/sys", "sysfs", "sysfs", [*shut, "rw" if "ALL" in options.unmask else "ro"]),
    ]
    if isolation.unified or isolation.cgroup:
        mounts.append(("/sys/fs/cgroup", "cgroup", "cgroup", [*shut, "relatime", "ro"]))
    return [
        {"destination": target, "type": kind, "source": source, "options": options}
        for target, kind, source, options in mounts
        if target in ("/proc", "/dev", "/sys") or (target not in taken and target not in left_out)
    ]


def _propagation(mounts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """That of the root: a mount can only get from the host, or give to it, what its root lets through."""
    options = {word.removeprefix("r") for mount in mounts for word in mount["options"]}
    found = next((word for word in ("shared", "slave") if word in options), "")
    return {"rootfsPropagation": f"r{found}"} if found else {}


def _resources(options: Any, nodes: Sequence[Facts], isolation: Isolation) -> dict[str, Any]:
    given = limits.resources(options) if isolation.cgroup else {}
    if not (options.pids or isolation.counted):
        given.pop("pids", None)
    return {"devices": devices.rules(nodes, options.device_rules), **given} if isolation.device_rules else given


def _hooks(facts: Facts, command: str, annotations: Mapping[str, str], volumes: bool) -> dict[str, list[Any]]:
    """OCI hooks of CDI's, which carry the name of the point in the container's life as ``hookName``.

    Those that have conditions (``when``) are left out where none holds.
    """
    hooks: dict[str, list[Any]] = {}
    for hook in facts.get("hooks", ()):
        from podrun_hooks import oci_hooks

        if hook.get("hookName") not in oci_hooks.STAGES or "path" not in hook:
            # The runtimes leave out what they do not know.
            stages = ", ".join(oci_hooks.STAGES)
            raise Failure(f"an OCI hook has a path and one of {stages}: not {hook}", code=WRONG_FILE)
        if "when" in hook:
            binds = volumes or any(_is_the_users(mount) for mount in facts.get("mounts", ()))
            if not oci_hooks.applies(hook["when"], command, annotations, binds=binds):
                continue
        given = {key: hook[key] for key in hook if key not in ("hookName", "when")}
        hooks.setdefault(hook["hookName"], []).append(given)
    return hooks


def _is_the_users(mount: Facts) -> bool:
    """A bind that somebody asked for, and not one of the files that every container gets."""
    bound = mount.get("type") == "bind" or {"bind", "rbind"} & set(mount.get("options", ()))
    return bool(bound) and mount["containerPath"] not in ("/etc/hosts", "/etc/resolv.conf", "/etc/hostname")
