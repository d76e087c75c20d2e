"""Podrun's records under the names that docker and podman give their fields, for the templates of ``--format``.

A pod's id is its name: that is what every command takes.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from podrun.cli import times
from podrun.cli.output import human
from podrun.cli.templates import Struct, Text

#: Docker's words for states of pods.
STATES = {"up": "running", "ended": "exited", "dead": "exited", "starting": "created", "stopping": "removing"}


def _label(labels: Mapping[str, str]) -> dict[str, Any]:
    """``{{.Labels}}`` and ``{{.Label "key"}}`` of a list's row."""
    return {"Labels": Text.of(labels), "Label": lambda key: labels.get(key, "")}


def _ago(seconds: float | None) -> str:
    return f"{times.age(time.time() - seconds)} ago" if seconds else ""


def _at(seconds: float | None) -> str:
    """As Go prints a time in a table."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(seconds)) if seconds else ""


def seconds_of(text: str) -> float | None:
    """Seconds since 1970 of a time in an image's configuration (RFC 3339); None for what is none."""
    try:
        return datetime.fromisoformat(re.sub(times.MICROSECONDS, r"\1", text)).timestamp()
    except ValueError:
        return None


def pod(row: Mapping[str, Any]) -> Struct:
    """A row of ``ps``."""
    state = "paused" if "(paused" in str(row["status"]) else str(row["state"])
    named = {
        "ID": row["name"],
        "Names": row["name"],
        "Image": row["image"] or "",
        "Command": row["command"],
        "CreatedAt": _at(row["started"]),
        "RunningFor": _ago(row["started"]),
        "State": STATES.get(state, state),
        "Status": row["status"],
        "ExitCode": row["exit"] or 0,
        "Pid": row["pid"] or 0,
        "Ports": ", ".join(row["ports"]),
        **_label(row["labels"] or {}),
    }
    return Struct(named, row)


def container(whole: Mapping[str, Any]) -> Struct:
    """What ``inspect`` knows of a pod; of several containers the last counts, as in ``ps``."""
    last = whole["containers"][-1] if whole["containers"] else {}
    state = str(whole["state"])
    running = state == "up"
    env = [f"{key}={value}" for key, value in (last.get("env") or {}).items()]
    limits = last.get("limits") or {}
    images = {f"mnt/{name}": ref for name, ref in _mounted_images(whole["steps"])}
    status = {
        "Status": STATES.get(state, state),
        "Running": running,
        "Paused": False,
        "Pid": last.get("pid") or 0,
        "ExitCode": whole.get("status") or 0,
        "StartedAt": _rfc3339(whole["started"]),
        "FinishedAt": _rfc3339(whole.get("ended")),
        "Health": Struct({"Status": last["health"]}) if last.get("health") else None,
    }
    config = {
        "Hostname": whole["hostname"] or "",
        "User": last.get("user") or "",
        "Env": env,
        "Cmd": list(last.get("command") or ()),
        "Image": last.get("image") or "",
        "WorkingDir": last.get("workdir") or "",
        "Labels": last.get("labels") or {},
    }
    named = {
        "Id": whole["name"],
        "ID": whole["name"],
        "Name": whole["name"],
        "Created": _rfc3339(whole["started"]),
        "Path": (last.get("command") or [""])[0],
        "Args": list(last.get("command") or ())[1:],
        "State": Struct(status),
        "Image": last.get("digest") or "",
        "ImageName": last.get("image") or "",
        "RestartCount": whole.get("restarts") or 0,
        "LogPath": last.get("log") or "",
        "Config": Struct(config),
        "HostConfig": Struct(
            {
                "Memory": limits.get("memory") or 0,
                "NanoCpus": int(float(limits.get("cpus") or 0) * 1e9),
                "PidsLimit": limits.get("pids") or 0,
                "PortBindings": _bindings(whole["ports"]),
            }
        ),
        "Mounts": [_mount(one, images) for one in last.get("mounts") or () if one["target"] not in _FILES],
        "NetworkSettings": _network_settings(whole),
    }
    return Struct(named, whole)


def _rfc3339(seconds: float | None) -> str:
    return times.stamp(seconds) if seconds else "0001-01-01T00:00:00Z"


#: Files that every pod with a network has; docker does not count them among the mounts.
_FILES = ("/etc/resolv.conf", "/etc/hostname", "/etc/hosts")


def _mounted_images(steps: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """The storage steps that have mounted an image: name, reference."""
    for step in steps:
        for image in (step["facts"].get("images") or {}).values() if step["hook"] == "storage" else ():
            yield step["name"], image["ref"]


def _mount(one: Mapping[str, Any], images: Mapping[str, str]) -> Struct:
    source, options = str(one["source"] or ""), one["options"]
    volume = source.split("/volumes/", 1)[1].split("/")[0] if "/volumes/" in source and source.endswith("/data") else ""
    image = images.get("/".join(source.rsplit("/", 2)[-2:]))
    kind = "image" if image else "volume" if volume else source if source == "tmpfs" else "bind"
    named = {
        "Type": kind,
        "Name": volume,
        "Source": image or source,
        "Destination": one["target"],
        "Mode": ",".join(options),
        "RW": not {"ro", "rro"} & {*options},
        "Options": options,
    }
    return Struct(named)


def _bindings(ports: Sequence[str]) -> dict[str, list[Struct]]:
    """ "127.0.0.1:8080->80/tcp" as docker inspects it."""
    found: dict[str, list[Struct]] = {}
    for text in ports:
        host, _, port = text.partition("->")
        address, _, number = host.rpartition(":")
        found.setdefault(port, []).append(Struct({"HostIp": address.strip("[]"), "HostPort": number}))
    return found


def _network_settings(whole: Mapping[str, Any]) -> Struct:
    networks = {one["name"]: _endpoint(one["addresses"]) for one in whole["networks"]}
    first = next(iter(networks.values()), _endpoint([]))
    named = {
        "IPAddress": first["IPAddress"],
        "IPPrefixLen": first["IPPrefixLen"],
        "GlobalIPv6Address": first["GlobalIPv6Address"],
        "Ports": _bindings(whole["ports"]),
        "Networks": networks,
        "SandboxKey": whole["netns"] or "",
    }
    return Struct(named)


def _endpoint(addresses: Sequence[str]) -> Struct:
    four, _, length = next((text for text in addresses if ":" not in text), "").partition("/")
    six = next((text for text in addresses if ":" in text), "").partition("/")[0]
    return Struct({"IPAddress": four, "IPPrefixLen": int(length or 0), "GlobalIPv6Address": six})


def image(row: Mapping[str, Any]) -> Struct:
    """A row of ``image ls``; ``full`` says that ids are not to be cut."""
    repository, tag = name_and_tag(row["ref"])
    created = seconds_of(row["created"])
    id = row["id"].removeprefix("sha256:")
    named = {
        "Repository": repository,
        "Tag": tag,
        "ID": row["id"] if row.get("full") else id[:12],
        "Id": id,
        "Digest": row["digest"],
        "Created": _ago(created),
        "CreatedSince": _ago(created),
        "CreatedAt": _at(created),
        "Size": human(row["size"]) if not isinstance(row["size"], str) else row["size"],
        "VirtualSize": human(row["size"]) if not isinstance(row["size"], str) else row["size"],
        **_label(row["labels"]),
    }
    return Struct(named, row)


def name_and_tag(ref: str) -> tuple[str, str]:
    """Repository and tag of a stored image's name; "<none>" as docker writes what there is not."""
    name, at, _ = ref.partition("@")
    head, colon, tag = name.rpartition(":")
    if at or not colon or "/" in tag:
        return name, "<none>"
    return head, tag


def image_inspected(whole: Mapping[str, Any]) -> Struct:
    """What ``image inspect`` knows of one image."""
    configuration = whole["configuration"]
    config = configuration.get("config") or {}
    keys = ("Env", "Cmd", "Entrypoint", "Labels", "WorkingDir", "User", "ExposedPorts", "Volumes", "StopSignal")
    id = whole["id"].removeprefix("sha256:")
    repository, tag = name_and_tag(whole["ref"])
    named = {
        "Id": id,
        "ID": id,
        "Digest": whole["digest"],
        "RepoTags": [whole["ref"]] if tag != "<none>" else [],
        "RepoDigests": [f"{repository}@{whole['digest']}"],
        "Created": configuration.get("created") or "",
        "Author": configuration.get("author") or "",
        "Architecture": configuration.get("architecture") or "",
        "Os": configuration.get("os") or "",
        "Config": Struct({key: config.get(key) for key in keys}),
        "Labels": config.get("Labels") or {},
        "User": config.get("User") or "",
        "RootFS": Struct({"Type": "layers", "Layers": (configuration.get("rootfs") or {}).get("diff_ids") or []}),
        "History": configuration.get("history") or [],
    }
    return Struct(named, whole)


def made(row: Mapping[str, Any]) -> Struct:
    """A row of ``image history``."""
    created = seconds_of(row["created"])
    named = {
        "ID": row["id"] or "<missing>",
        "Created": _ago(created),
        "CreatedSince": _ago(created),
        "CreatedAt": row["created"],
        "CreatedBy": row["created_by"],
        "Size": human(row["size"]),
        "Comment": row["comment"],
    }
    return Struct(named, row)


def volume(row: Mapping[str, Any]) -> Struct:
    """A row of ``volume ls``, and what ``volume inspect`` knows."""
    named = {
        "Name": row["name"],
        "Driver": "local",
        "Scope": "local",
        "Mountpoint": row["path"],
        "CreatedAt": _rfc3339(row["created"]),
        "Labels": row["labels"],
        "Label": lambda key: row["labels"].get(key, ""),
        "Options": row["options"],
    }
    return Struct(named, row)


def network(row: Mapping[str, Any]) -> Struct:
    """A row of ``network ls``."""
    subnets = [row[key] for key in ("subnet", "subnet6") if row.get(key)]
    named = {
        "ID": row["name"],
        "Id": row["name"],
        "Name": row["name"],
        "Driver": "bridge",
        "Scope": "local",
        "IPv6": bool(row.get("subnet6")),
        "Internal": False,
        "Labels": "",
        "Subnets": [Struct({"Subnet": text}) for text in subnets],
        "IPAM": Struct({"Driver": "default", "Config": [Struct({"Subnet": text}) for text in subnets]}),
    }
    return Struct(named, row)


def used(row: Mapping[str, Any]) -> Struct:
    """A row of ``stats``."""
    named = {
        "ID": row["pod"],
        "Container": row["pod"],
        "Name": row["pod"],
        "CPUPerc": row["cpu"],
        "MemUsage": f"{row['memory']} / {row['limit'] or '-'}",
        "MemPerc": row["used"],
        "NetIO": row["network"] or "-- / --",
        "BlockIO": row["block"] or "-- / --",
        "PIDs": row["processes"],
    }
    return Struct(named, row)


#: Docker's words for what system df counts.
_KINDS = {"images": "Images", "pods": "Containers", "volumes": "Local Volumes"}


def disk(row: Mapping[str, Any]) -> Struct:
    """A row of ``system df``."""
    named = {
        "Type": _KINDS[row["type"]],
        "Total": row["count"],
        "TotalCount": row["count"],
        "Active": row["active"],
        "Size": human(row["size"]),
        "Reclaimable": f"{human(row['reclaimable'])} ({100 * row['reclaimable'] // (row['size'] or 1)}%)",
        "RawSize": row["size"],
        "RawReclaimable": row["reclaimable"],
    }
    return Struct(named, row)


def version(about: Mapping[str, Any]) -> Struct:
    """What ``version`` tells. There is no server: what asks for its version gets podrun's."""
    own = Struct({"Version": about["podrun"], "Os": "linux", "KernelVersion": about["kernel"]})
    return Struct({"Client": own, "Server": own, "Version": about["podrun"]}, about)


def host(whole: Mapping[str, Any]) -> Struct:
    """What ``info`` tells."""
    unified = whole["cgroups"] == "v2"
    named = {
        "Name": os.uname().nodename,
        "ServerVersion": whole["version"],
        "Driver": "overlay",
        "OSType": "linux",
        "Architecture": whole["architecture"],
        "KernelVersion": whole["kernel"],
        "NCPU": whole["processors"],
        "MemTotal": whole["memory"],
        "CgroupVersion": "2" if unified else "1",
        "CgroupDriver": "systemd" if whole["systemd"] else "cgroupfs",
        "LoggingDriver": "journald" if whole["systemd"] else "k8s-file",
        "DockerRootDir": whole["root"],
        "Containers": whole["pods"],
        "Images": whole["images"],
        "Host": Struct(
            {
                "Arch": whole["architecture"],
                "Kernel": whole["kernel"],
                "CgroupsVersion": whole["cgroups"],
                "CPUs": whole["processors"],
                "MemTotal": whole["memory"],
                "Hostname": os.uname().nodename,
                "OS": "linux",
            }
        ),
        "Store": Struct({"GraphRoot": whole["root"], "RunRoot": whole["run"]}),
        "Version": Struct({"Version": whole["version"]}),
    }
    return Struct(named, whole)
