"""Writes docs/reference/conversions.md: each key of compose and Quadlet and each option of docker run, converted.

Usage: python docs/conversions.py. The page is committed; a test compares it with what this prints. Every row is a sample
that the converter itself has converted; a key without a sample is a failure.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from podrun.convert import commandline, compose, quadlet, settle, toml
from podrun.convert.compose import service
from podrun.convert.draft import Draft
from podrun.convert.options import OPTIONS
from podrun.convert.quadlet import container
from podrun.engine import hook_loader
from podrun.podfile import tables

PAGE = Path(__file__).resolve().parent / "reference" / "conversions.md"
HEAD = """# Each key and option, converted

Made by `podrun convert` itself: each row is a sample that it has converted, with what the pod file says for it and what people are
told. How to use it is on the page about [coming from other tools](../how-to/converting.md).
"""

#: Of options with a value: a sample, where "1" says nothing.
VALUES = {
    "add-host": "db:10.0.0.9", "annotation": "a=b", "arch": "arm64", "cap-add": "NET_ADMIN,SYS_TIME", "cap-drop": "ALL",
    "cgroup-parent": "web.slice", "cpu-shares": "512", "cpus": "1.5", "cpuset-cpus": "0-2", "device": "/dev/fuse:/dev/fuse:rw",
    "device-cgroup-rule": "c 189:* rwm",
    "dns": "9.9.9.9", "dns-option": "ndots:1", "dns-search": "example.org", "entrypoint": "/run.sh", "env": "MODE=prod",
    "env-file": "/etc/web.env", "gpus": "all", "group-add": "audio", "health-cmd": "curl -f localhost", "health-interval": "10s",
    "health-on-failure": "kill", "health-retries": "5", "health-start-period": "30s", "health-timeout": "5s", "hostname": "front",
    "ip": "10.9.0.9", "ip6": "fd00::9", "ipc": "host", "label": "a=b", "log-driver": "json-file", "log-opt": "max-size=10m",
    "mac-address": "02:00:00:00:00:01", "memory": "64mb", "memory-reservation": "32mb", "memory-swap": "-1",
    "mount": "type=bind,source=/etc,target=/e,readonly", "name": "front", "network": "host", "oom-score-adj": "500", "pid": "host",
    "pids-limit": "100", "platform": "linux/arm64", "publish": "8080:80", "pull": "always", "requires": "db", "restart": "always",
    "runtime": "runc", "sdnotify": "container", "secret": "key", "security-opt": "seccomp=unconfined", "shm-size": "128m",
    "stop-signal": "SIGINT", "stop-timeout": "20", "sysctl": "net.core.somaxconn=1024", "tmpfs": "/run:size=64m",
    "tz": "Europe/Berlin", "ulimit": "nofile=1024:2048", "umask": "0027", "user": "1000:1000", "userns": "keep-id",
    "volume": "/etc:/data:ro", "workdir": "/app", "isolation": "default", "network-alias": "db", "variant": "v7",
}  # fmt: skip

#: Keys of a service; what is a string here stands there as it is.
SERVICE: dict[str, Any] = {
    "annotations": {"a": "b"}, "attach": False, "blkio_config": {"weight": 300}, "build": "./src", "cap_add": ["NET_ADMIN"],
    "cap_drop": ["ALL"], "cgroup": "private", "cgroup_parent": "web.slice", "command": "serve --port 80", "configs": ["c"],
    "container_name": "front", "cpu_count": 2, "cpu_percent": 50, "cpu_period": 100000, "cpu_quota": 50000,
    "cpu_rt_period": 1000, "cpu_rt_runtime": 1000, "cpu_shares": 512, "cpus": 1.5, "cpuset": "0-2",
    "credential_spec": {"file": "x"}, "depends_on": ["db"], "deploy": {"resources": {"limits": {"memory": "64M", "cpus": "0.5"}}},
    "develop": {"watch": []}, "device_cgroup_rules": ["c 1:3 mr"], "devices": ["/dev/fuse:/dev/fuse:rw"], "dns": "9.9.9.9",
    "dns_opt": ["ndots:1"], "dns_search": "example.org", "domainname": "example.org", "entrypoint": "/run.sh -v",
    "env_file": "web.env", "environment": {"MODE": "prod"}, "expose": [80], "extends": {"service": "base"},
    "external_links": ["other"], "extra_hosts": ["db:10.0.0.9"], "gpus": "all", "group_add": ["audio"],
    "healthcheck": {"test": ["CMD", "check"], "interval": "10s", "timeout": "5s", "retries": 3}, "hostname": "front",
    "image": "nginx:1.27", "init": True, "ipc": "host", "isolation": "default", "label_file": "l", "labels": {"a": "b"},
    "links": ["db"], "logging": {"driver": "json-file", "options": {"max-size": "10m"}}, "mac_address": "02:00:00:00:00:01",
    "mem_limit": "64mb", "mem_reservation": "32mb", "mem_swappiness": 10, "memswap_limit": -1, "models": ["m"],
    "network_mode": "host", "networks": ["front"], "oom_kill_disable": True, "oom_score_adj": 500, "pid": "host",
    "pids_limit": 100, "platform": "linux/arm64", "ports": ["8080:80"], "post_start": [{"command": "x"}],
    "pre_stop": [{"command": "x"}], "privileged": True, "provider": {"type": "x"},
    "pull_policy": "always", "read_only": True, "restart": "unless-stopped", "runtime": "runc", "scale": 3, "secrets": ["s"],
    "security_opt": ["seccomp:unconfined"], "shm_size": "128mb", "stdin_open": True, "stop_grace_period": "1m30s",
    "stop_signal": "SIGINT", "storage_opt": {"size": "1G"}, "sysctls": {"net.core.somaxconn": 1024}, "tmpfs": "/run:size=64m",
    "tty": True, "ulimits": {"nofile": {"soft": 1024, "hard": 2048}}, "use_api_socket": True, "user": "1000:1000",
    "userns_mode": "host", "uts": "host", "volumes": ["/etc:/data:ro", "cache:/cache"], "volumes_from": ["db"],
    "working_dir": "/app",
}  # fmt: skip
AROUND = {
    "networks": {"front": None, "default": None}, "volumes": {"cache": None},
    "configs": {"c": {"content": "text"}}, "secrets": {"s": {"environment": "SECRET"}},
}  # fmt: skip

#: Keys of [Container] and [Pod] whose option's sample is not a sample for them.
UNITS = {
    "AddCapability": "NET_ADMIN SYS_TIME", "AddDevice": "/dev/null", "AppArmor": "web", "AutoUpdate": "registry",
    "CgroupsMode": "no-conmon", "ContainerName": "front", "DropCapability": "all", "EnvironmentHost": "yes",
    "Exec": "serve \"an arg\"", "ExitPolicy": "stop", "Group": "1000", "HttpProxy": "yes", "Mask": "/proc/a",
    "Notify": "yes", "NoNewPrivileges": "yes", "PodmanArgs": "--cpus 2", "ReadOnly": "yes", "ReadOnlyTmpfs": "no",
    "RunInit": "yes", "SeccompProfile": "unconfined", "SecurityLabelDisable": "yes", "SecurityLabelFileType": "t",
    "SecurityLabelLevel": "s0", "SecurityLabelNested": "yes", "SecurityLabelType": "t", "Timezone": "local",
    "Unmask": "ALL", "User": "1000", "VolatileTmp": "yes", "HealthCmd": "/bin/check", "RemapUsers": "auto",
    "Image": "nginx:1.27", "Rootfs": "/srv/root", "ServiceName": "front", "ReloadCmd": "nginx -s reload",
    "ReloadSignal": "SIGHUP", "Environment": "A=1 B=2", "EnvironmentFile": "/etc/web.env", "Label": "a=b",
    "Annotation": "a=b", "Sysctl": "net.core.somaxconn=1024", "AddHost": "db:10.0.0.9", "DNS": "9.9.9.9",
    "DNSOption": "ndots:1", "DNSSearch": "example.org", "Entrypoint": "/run.sh", "GroupAdd": "audio",
    "HealthInterval": "10s", "HealthOnFailure": "kill", "HealthRetries": "5", "HealthStartPeriod": "30s",
    "HealthTimeout": "5s", "HostName": "front", "IP": "10.9.0.9", "IP6": "fd00::9", "LogDriver": "k8s-file",
    "LogOpt": "path=/var/log/web", "Memory": "64m", "Mount": "type=bind,source=/etc,destination=/e,ro",
    "Network": "host", "NetworkAlias": "db", "PidsLimit": "100", "PublishPort": "8080:80", "Pull": "never",
    "Secret": "key", "ShmSize": "128m", "StopSignal": "SIGINT", "StopTimeout": "20", "Tmpfs": "/run:size=64m",
    "Ulimit": "nofile=1024:2048", "UserNS": "keep-id", "Volume": "/etc:/e:ro", "WorkingDir": "/app",
    "SubUIDMap": "web", "SubGIDMap": "web", "UIDMap": "0:10000:10", "GIDMap": "0:10000:10", "RemapUid": "0:10000:10",
    "RemapGid": "0:10000:10", "RemapUidSize": "20", "ExposeHostPort": "80", "ContainersConfModule": "/etc/1.conf",
    "GlobalArgs": "--log-level=debug", "Retry": "5", "RetryDelay": "5s",
}  # fmt: skip


def page() -> str:
    """The whole page. Raises KeyError for a key without a sample."""
    with tempfile.TemporaryDirectory() as place:
        directory = f"{place}/shop"
        os.mkdir(directory)
        parts = [
            _section("compose", "services.web", "service", _of_services(directory)),
            _section("Quadlet", "[Container]", "key", _of_units(directory)),
            _section("docker run, podman run", "the command line", "option", _of_options()),
        ]
        text = "\n".join(parts).replace(directory, "/srv/shop")
    return f"{HEAD}\n{text}"


def _section(title: str, where: str, what: str, rows: list[tuple[str, Draft, Draft]]) -> str:
    lines = [f"## {title}", "", f"| {where} | pod file | what people are told |", "| --- | --- | --- |"]
    for sample, plain, draft in rows:
        notes = [f"{note.what}{f'; {note.hint}' if note.hint else ''}" for note in draft.all_notes()]
        told = "<br>".join(_cell(note) for note in notes)
        lines.append(f"| `{_cell(sample)}` | {'<br>'.join(_difference(plain, draft))} | {told} |")
    return "\n".join(lines) + "\n"


def _difference(plain: Draft, draft: Draft) -> list[str]:
    """What the pod file has that the one without the key has not."""
    before = _lines(plain)
    return [f"`{_cell(line)}`" for line in _lines(draft) if line not in before]


def _lines(draft: Draft) -> list[str]:
    """The pod's keys, each with its table; of a pod that the sample has renamed, too."""
    if not draft.pods:
        return []
    pod = draft.pods[-1]
    lines = [f'[pod] name = "{pod.name}"', *(f"[pod] {line}" for line in toml.keys(pod.table))]
    for step in pod.steps:
        lines += [f"{step.hook}: {line}" for line in toml.keys(step.values)]
    for section, table in pod.sections.items():
        lines += [f"[{section}] {line}" for line in toml.keys(table)]
    return [line.replace("\n", " ") for line in lines]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _settled(convert: Callable[[], Draft]) -> Draft:
    draft = convert()
    network = import_module(f"{hook_loader.FIRST_PARTY['network']}.options").Network
    settle.settle(draft, declared, tables.FileTable._field_defaults, tables.PodTable._field_defaults, network)
    return draft


def declared(hook: str) -> Any:
    """The keys of a step."""
    options: Any = hook_loader.load(hook).Options
    return {**options._field_defaults, **tables.StepTable._field_defaults}


def _of_services(directory: str) -> list[tuple[str, Draft, Draft]]:
    def converted(table: dict[str, Any]) -> Draft:
        base = {"image": "a", **table}
        if "build" in table:
            del base["image"]
        whole = {"services": {"db": {"image": "b"}, "base": {"image": "a", "init": True}, "web": base}, **AROUND}
        path = f"{directory}/compose.yaml"
        Path(path).write_text(json.dumps(whole))
        asked = compose.Asked([path], {})
        draft = _settled(lambda: compose.convert(asked, {}))
        draft.pods = [pod for pod in draft.pods if pod.origin.key == "services.web"]
        draft.notes = []
        return draft

    # A profile says whether the service is converted at all.
    keys = sorted({*service.KEYS, *service.ELSEWHERE} - {"profiles"})
    plain = converted({})
    return [(f"{key}: {json.dumps(SERVICE[key])}", plain, converted({key: SERVICE[key]})) for key in keys]


def _of_units(directory: str) -> list[tuple[str, Draft, Draft]]:
    def converted(lines: str) -> Draft:
        path = f"{directory}/web.container"
        Path(path).write_text(f"[Container]\nImage=a\n{lines}\n")
        return _settled(lambda: quadlet.convert([path], {}))

    keys = sorted({*container.CONTAINER, "Image", "Rootfs", "ServiceName", "ReloadCmd", "ReloadSignal"})
    rows = []
    for key in keys:
        needed = {"Group": "User=1000\n", "HealthInterval": "HealthCmd=/bin/check\n"}.get(key, "")
        if key.startswith("Health") and "Startup" not in key and key != "HealthCmd":
            needed = "HealthCmd=/bin/check\n"
        sample = UNITS.get(key, "1" if key.startswith("Health") else None)
        if sample is None:
            raise KeyError(key)
        rows.append((f"{key}={sample}", converted(needed), converted(f"{needed}{key}={sample}")))
    return rows


def _of_options() -> list[tuple[str, Draft, Draft]]:
    def converted(words: list[str]) -> Draft:
        return _settled(lambda: commandline.convert(["docker", "run", *words, "web"], {}))

    rows = []
    for name, meaning in OPTIONS.items():
        needed = ["--health-cmd=check"] if name.startswith("health-") and name != "health-cmd" else []
        sample = f"--{name}" if meaning.switch else f"--{name}={VALUES.get(name, '1')}"
        rows.append((sample, converted(needed), converted([*needed, sample])))
    return rows


if __name__ == "__main__":
    PAGE.write_text(page())
