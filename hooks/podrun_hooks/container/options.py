"""The options of a container step."""

from __future__ import annotations

from podrun.options import (
    ABSOLUTE,
    BOOLEAN,
    DURATION,
    SIZE,
    TEXT,
    Kind,
    Wrong,
    checked,
    choice,
    list_of,
    option,
    record,
    step_giving,
    table_of,
    whole,
)
from podrun.record import NamedTuple
from podrun_hooks.container import devices as device_nodes
from podrun_hooks.container import limits
from podrun_hooks.container.users import spelled
from podrun_hooks.support.rooted_tree import plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: capabilities(7) in the order of their numbers: CAP_CHOWN is bit 0.
CAPABILITIES = [
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
]  # fmt: skip

#: signal(7); real-time signals count from 34 (32 and 33 belong to the C library).
_SIGNALS = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
]  # fmt: skip


def _capability(text: str) -> str:
    name = text.upper().removeprefix("CAP_")
    if name != "ALL" and name not in CAPABILITIES:
        from podrun.options import unknown

        raise Wrong(unknown(text, CAPABILITIES, "capability"))
    return name


def signal_number(text: Any) -> int:
    """The number of "SIGTERM", "term", "RTMIN+3", 15 or "15"; raises Wrong."""
    name = str(text).upper().removeprefix("SIG")
    if name in _SIGNALS:
        return _SIGNALS.index(name) + 1
    for word, base, sign in (("RTMIN", 34, 1), ("RTMAX", 64, -1)):
        offset = name.removeprefix(word).lstrip("+-") or "0"
        if (
            name.startswith(word)
            and len(offset) < 3
            and offset.isascii()
            and offset.isdecimal()
            and 34 <= base + sign * int(offset) <= 64
        ):
            return base + sign * int(offset)
    if len(name) < 3 and name.isascii() and name.isdecimal() and 0 < int(name) <= 64:
        return int(name)
    raise Wrong(f"expected a signal such as 'SIGTERM' or 15, not {text!r}")


def _cpus(value: Any) -> float:
    try:
        number = float(value) if type(value) in (int, float, str) else 0.0
    except ValueError:
        number = 0.0
    if not 0.01 <= number <= 100000:
        raise Wrong(f"expected a number of processors such as 1.5, not {value!r}")
    return number


def _word(value: Any) -> str:
    """Text; numbers and booleans, which TOML tells apart, are spelled out."""
    if type(value) is bool:
        return "true" if value else "false"
    return str(value) if type(value) in (int, float) else str(TEXT.parse(value))


def _variables(table: dict[str, str]) -> dict[str, str]:
    for name in table:
        if not name or "=" in name or "\0" in name:
            raise Wrong(f"{name!r} cannot be the name of a variable", (name,))
    return table


def _at_least_one(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise Wrong(f"expected a number from 1, not {value!r}")
    return value


def _pids(value: Any) -> int:
    return -1 if value == -1 and type(value) is int else _at_least_one(value)


def _label(text: str) -> str:
    if not text or not text.isprintable() or " " in text:
        raise Wrong(f"expected a profile or label, not {text!r}")
    return text


def _log_files(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= 99:
        raise Wrong(f"expected a number from 0 to 99, not {value!r}")
    return value


def _log(text: str) -> str:
    if text in ("auto", "direct", "pipe", "none") or text.startswith("file:/"):
        return text
    raise Wrong(f"expected 'auto', 'direct', 'pipe', 'none' or 'file:/path', not {text!r}")


def _profile(text: str) -> str:
    if text in ("default", "unconfined") or text.startswith("/"):
        return text
    raise Wrong(f"expected 'default', 'unconfined' or the absolute path of a profile, not {text!r}")


def is_anonymous(text: str) -> bool:
    """Whether one of ``volumes`` is a volume without a name, which goes with the container: "/target"."""
    return text.startswith("/") and ":" not in text


def named_twice(options: Any) -> str:
    """The first place that two of the container's own mounts would cover; "": there is none."""
    seen: set[str] = set()
    # The very same one twice is harmless, and files that are put together have it.
    named = [text if is_anonymous(text) else text.split(":")[1] for text in dict.fromkeys(options.volumes)]
    for target in map(plain, [*named, *(text.partition(":")[0] for text in dict.fromkeys(options.tmpfs))]):
        if target in seen:
            return target
        seen.add(target)
    return ""


def _volume(text: str) -> str:
    if is_anonymous(text):
        if text == "/" or ".." in text.split("/"):
            raise Wrong(f"expected /target or source:/target, not {text!r}")
        return text
    from podrun_hooks.storage.docker_spelling import from_docker

    from_docker(text, "/")
    return text


def _tmpfs(text: str) -> str:
    target, _, given = text.partition(":")
    if not text.startswith("/") or ".." in target.split("/"):
        raise Wrong(f"expected /target or /target:options, not {text!r}")
    for word in given.split(","):
        key, equals, value = word.partition("=")
        if equals and not _fits_tmpfs(key, value):
            raise Wrong(
                f"{word!r} in {text!r} is not an option of tmpfs(5): use size=64M, mode=1777, uid=, gid=, nr_inodes="
            )
    return text


def _fits_tmpfs(key: str, value: str) -> bool:
    """Whether tmpfs(5) has the option with such a value; what else a kernel knows (huge=, mpol=) it checks itself."""
    if key in ("size", "nr_blocks", "nr_inodes"):
        value = value[:-1] if value[-1:].upper() in ("K", "M", "G", "%" if key == "size" else "K") else value
    elif key == "mode":
        return len(value) < 6 and whole(value) is not None and not set(value) & {"8", "9"}
    elif key not in ("uid", "gid"):
        return key in ("huge", "mpol")
    return whole(value, (1 << 64) - 1) is not None


def _zone(text: str) -> str:
    if text != "local" and (text.startswith("/") or ".." in text.split("/") or not text.isprintable()):
        raise Wrong(f"expected a time zone such as 'Europe/Berlin', or 'local', not {text!r}")
    return text


def _masked(text: str) -> str:
    if not text.startswith(("/proc/", "/sys/")) or ".." in text.split("/"):
        raise Wrong(f"expected a path in /proc or /sys, not {text!r}")
    return text


def _unmasked(text: str) -> str:
    if text != "ALL" and not text.startswith(("/proc/", "/sys/")):
        raise Wrong(f"expected 'ALL' or a path in /proc or /sys, not {text!r}")
    return text


def _host_name(text: str) -> str:
    labels = text.split(".")
    if len(text) > 63 or not all(label.replace("-", "a").isalnum() and label.isascii() for label in labels):
        raise Wrong(f"{text!r} cannot be a host name (hostname(7))")
    return text


class Capabilities(NamedTuple):
    """``capabilities = { add = [...], drop = [...] }``."""

    add: list[str] = option(list_of(checked(TEXT, _capability)), "capabilities to add to the default ones", [])
    drop: list[str] = option(list_of(checked(TEXT, _capability)), "capabilities to take away; ALL: every one", [])


def _notify(value: Any) -> bool | str:
    if value in (True, False, "direct") and type(value) in (bool, str):
        return value  # type: ignore[no-any-return]
    raise Wrong(f"expected true, false or 'direct', not {value!r}")


def _some_time(value: float) -> float:
    if not 0.01 <= value <= 86400 * 365:
        raise Wrong("expected a time from 10ms to a year")
    return value


def _no_time_or_some(value: float) -> float:
    return value and _some_time(value)


class Ready(NamedTuple):
    """``ready = { ... }``: exactly one of http, tcp, exec and notify."""

    http: str = option(TEXT, "ready when a GET of HOST:PORT/PATH, from inside, is answered with 2xx or 3xx", "")
    tcp: str = option(TEXT, "ready when HOST:PORT accepts a connection from inside; ':80' is any own address", "")
    exec: list[str] = option(list_of(TEXT), "ready when this command, run in the container, exits 0", [])
    notify: bool | str = option(
        Kind(_notify, {"enum": [True, False, "direct"]}),
        "ready when the payload sends READY=1 (sd_notify(3)); direct: and systemd hears its WATCHDOG=1",
        False,
    )
    timeout: float = option(DURATION, "how long it may take", 30.0)
    interval: float = option(DURATION, "the longest time between two attempts", 0.2)


class Live(NamedTuple):
    """``live = { ... }``: exactly one of http, tcp and exec."""

    http: str = option(TEXT, "alive while a GET of HOST:PORT/PATH, from inside, is answered with 2xx or 3xx", "")
    tcp: str = option(TEXT, "alive while HOST:PORT accepts a connection from inside; ':80' is any own address", "")
    exec: list[str] = option(list_of(TEXT), "alive while this command, run in the container, exits 0", [])
    interval: float = option(checked(DURATION, _some_time), "the time from one attempt to the next", 10.0)
    timeout: float = option(checked(DURATION, _some_time), "how long an attempt may take", 5.0)
    retries: int = option(
        Kind(_at_least_one, {"type": "integer", "minimum": 1}), "failures in a row after which it is killed", 3
    )
    start_period: float = option(
        checked(DURATION, _no_time_or_some),
        "the time from the first attempt's turn in which failures do not count, or until it has succeeded once",
        0.0,
    )
    on_failure: str = option(
        choice("kill", "none"), "kill: a container that fails is killed; none: only its health says so", "kill"
    )


def of_healthcheck(config: Mapping[str, Any]) -> Live | None:
    """An image's HEALTHCHECK as a live probe (docker's image configuration: times in nanoseconds, 0: its default)."""
    check = config.get("Healthcheck")
    check = check if isinstance(check, dict) else {}
    test = check.get("Test")
    if not (isinstance(test, list) and len(test) > 1 and all(type(word) is str for word in test)):
        return None  # absent, ["NONE"], or [] (inherit), with nothing to inherit from
    words = {"CMD": test[1:], "CMD-SHELL": ["/bin/sh", "-c", " ".join(test[1:])]}.get(test[0])
    if words is None:
        return None

    def seconds(key: str, usual: float) -> float:
        value = check.get(key)
        return value / 1e9 if type(value) is int and value > 0 else usual

    retries = check.get("Retries")
    retries = retries if type(retries) is int and retries > 0 else 3
    return Live(
        exec=words,
        http="",
        tcp="",
        interval=seconds("Interval", 30),
        timeout=seconds("Timeout", 30),
        retries=retries,
        start_period=seconds("StartPeriod", 0),
        on_failure="kill",
    )


def _one_probe(value: Any) -> Any:
    notify = getattr(value, "notify", False)
    if sum(map(bool, (value.http, value.tcp, value.exec, notify))) != 1:
        words = "http, tcp, exec and notify" if hasattr(value, "notify") else "http, tcp and exec"
        raise Wrong(f"expected exactly one of {words}")
    from podrun_hooks.container.probes.targets import target

    for text in (value.http, value.tcp):
        if text:
            target(text)
    return value


ENV: Kind[dict[str, str]] = checked(
    table_of(Kind(_word, {"type": ["string", "number", "boolean"]})),
    _variables,
    {"propertyNames": {"pattern": "^[^=]+$"}},
)
USER: Kind[str] = Kind(
    lambda value: spelled(str(value) if type(value) is int else TEXT.parse(value)),
    {"type": ["string", "integer"], "examples": ["1000:1000", "www-data"]},
)
CAPABILITY_LIST: Kind[list[str]] = list_of(checked(TEXT, _capability, {"enum": [*CAPABILITIES, "ALL"]}))
NO_CAPABILITIES = Capabilities([], [])


class Options(NamedTuple):
    """The options of a container step."""

    image: str = option(step_giving("images"), "the name of an image step; default: the nearest one above", "")
    command: list[str] | None = option(list_of(TEXT), "replaces the image's CMD", None)
    entrypoint: list[str] | None = option(list_of(TEXT), "replaces the image's ENTRYPOINT, and drops its CMD", None)
    env: dict[str, str] = option(ENV, "variables; they win over the image's and over injected ones", {})
    user: str = option(USER, "user[:group], names as the image's passwd has them; default: the image's USER", "")
    workdir: str = option(ABSOLUTE, "the working directory; default: the image's WORKDIR", "")
    hostname: str = option(checked(TEXT, _host_name), "default: the pod's", "")
    read_only: bool = option(BOOLEAN, "mount the root read-only", False)
    volumes: list[str] = option(
        list_of(checked(TEXT, _volume)),
        "mounts in docker's spelling, /host:/target[:ro]; /target alone is a volume that goes with the container",
        [],
    )
    tmpfs: list[str] = option(
        list_of(checked(TEXT, _tmpfs)), "tmpfs mounts in docker's spelling: /target[:options]", []
    )
    persist: bool = option(BOOLEAN, "keep the writable layer when the pod goes down", False)
    memory: int = option(SIZE, "limit of memory", 0)
    cpus: float = option(
        Kind(_cpus, {"type": ["number", "string"]}), "limit of processor time, 1.5 is one and a half", 0.0
    )
    pids: int = option(
        Kind(_pids, {"type": "integer", "minimum": -1}), "limit of processes and threads; default: 2048; -1: none", 0
    )
    memory_reservation: int = option(
        SIZE, "soft limit: when memory is short, the kernel reclaims first what is above it", 0
    )
    memory_swap: int = option(limits.SWAP, "limit of memory and swap together; -1: as much swap as there is", 0)
    cpu_shares: int = option(limits.SHARES, "CPU weight relative to other containers; the usual one is 1024", 0)
    cpuset: str = option(limits.CPU_LIST, "the processors it may use, such as 0-2,4", "")
    ulimits: dict[str, tuple[int, int]] = option(limits.ULIMITS, "limits by setrlimit(2): nofile = '1024:2048'", {})
    oom_score_adj: int = option(limits.OOM_SCORE, "how soon the kernel kills it when memory is short", 0)
    shm_size: int = option(SIZE, "size of /dev/shm", 64 << 20)
    devices: list[str] = option(
        list_of(checked(TEXT, device_nodes.spelled)),
        "devices in docker's spelling: /dev/x[:/dev/y][:rwm], or by CDI: nvidia.com/gpu=all",
        [],
    )
    device_rules: list[str] = option(
        list_of(checked(TEXT, device_nodes.rule_spelled)),
        "devices that it may use besides, also ones that come later: 'c 189:* rwm' (type, numbers, access)",
        [],
    )
    groups: list[str] = option(limits.GROUPS, "supplementary groups, numbers or names of the image", [])
    ipc: str = option(
        choice("private", "host", "none"), "whose System V IPC and shared memory it uses; none: no /dev/shm", "private"
    )
    pid: str = option(choice("private", "host"), "whose processes it sees", "private")
    tz: str = option(checked(TEXT, _zone), "time zone: Europe/Berlin, or local for the host's", "")
    umask: str = option(limits.UMASK, "the umask it starts with, octal", "")
    sysctls: dict[str, str] = option(limits.SYSCTLS, "sysctls of its own IPC namespace", {})
    env_files: list[str] = option(list_of(ABSOLUTE), "files of variables in docker's form; env wins over them", [])
    no_new_privileges: bool = option(BOOLEAN, "setuid programs and file capabilities gain no privileges", True)
    mask: list[str] = option(list_of(checked(TEXT, _masked)), "more paths of /proc and /sys to hide", [])
    unmask: list[str] = option(
        list_of(checked(TEXT, _unmasked)), "masked and read-only paths of /proc and /sys to open; ALL: every one", []
    )
    capabilities: Capabilities = option(record(Capabilities), "capabilities to add and to drop", NO_CAPABILITIES)
    cap_add: list[str] = option(CAPABILITY_LIST, "the same as capabilities.add", [])
    cap_drop: list[str] = option(CAPABILITY_LIST, "the same as capabilities.drop", [])
    seccomp: str = option(checked(TEXT, _profile), "default, unconfined, or the path of a profile", "default")
    nested_userns: bool = option(
        BOOLEAN, "allow it to create user namespaces: containers in it, a browser's sandbox", False
    )
    apparmor: str = option(checked(TEXT, _label), "the AppArmor profile, which has to be loaded", "")
    selinux: str = option(checked(TEXT, _label), "the SELinux label of its processes: user:role:type:level", "")
    selinux_mount: str = option(checked(TEXT, _label), "the SELinux label of its files, where they have none", "")
    init: bool = option(BOOLEAN, "run catatonit as PID 1, which passes signals on and reaps", False)
    ready: Ready | None = option(checked(record(Ready), _one_probe), "when the container counts as started", None)
    live: Live | None = option(
        checked(record(Live), _one_probe), "the probe that it has to answer as long as it runs", None
    )
    health: str = option(
        choice("none", "image"), "image: the image's HEALTHCHECK, where it has one, is the live probe", "none"
    )
    stop_signal: int = option(
        Kind(signal_number, {"type": ["string", "integer"]}), "default: the image's STOPSIGNAL, else SIGTERM", 0
    )
    stop_timeout: float | None = option(DURATION, "time from the signal to SIGKILL; default: the pod's", None)
    log: str = option(checked(TEXT, _log), "where the output goes: auto, direct, pipe, none, or file:/path", "auto")
    log_size: int = option(SIZE, "size at which a log file is rotated; default: it grows", 0)
    log_files: int = option(
        Kind(_log_files, {"type": "integer", "minimum": 0, "maximum": 99}), "how many rotated log files are kept", 3
    )
    interactive: bool = option(BOOLEAN, "give the container podrun's standard input", False)
    tty: bool = option(BOOLEAN, "give the container a terminal of its own, which 'podrun attach' shows", False)
    runtime: str = option(choice("auto", "crun", "runc"), "the OCI runtime; auto: crun, else runc", "auto")
    annotations: dict[str, str] = option(table_of(TEXT), "annotations in the runtime's configuration", {})
    labels: dict[str, str] = option(table_of(TEXT), "the same as annotations, under docker's name", {})
