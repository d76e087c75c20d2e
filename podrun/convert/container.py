"""One container of a draft: its image, network and container steps, and the mounts between them."""

from __future__ import annotations

import os
from typing import Any

from .draft import OPEN, Origin, Pod, Step, absolute, is_open, step_name
from .spellings import size

#: Words of docker's mounts that mean nothing here: caches of its virtual machine, and what is the default anyway.
_IDLE = frozenset({"cached", "delegated", "consistent", "bind-propagation=rprivate", ""})


#: What podman's --read-only-tmpfs, which is on by default, mounts.
_TMPFS = ("/run", "/tmp", "/var/tmp")


class Container:
    """What the front ends fill. ``directory`` is what relative paths start from, ``volume`` names a named volume."""

    def __init__(self, pod: Pod, name: str = "", *, directory: str = "", home: str = "") -> None:
        self.pod = pod
        self.directory = directory
        self.home = home
        self.image = Step("image")
        self.network = Step("network")
        self.networks: list[Step] = []
        self.step = Step("container")
        self.mounts: list[Step] = []
        self.name = step_name(name) if name else ""
        if name:
            self.step.values["name"] = self.name
        #: The named volumes that are something else than a directory of podrun's: what their steps say.
        self.volumes: dict[str, dict[str, Any]] = {}
        #: What the project calls its volumes.
        self.volume_names: dict[str, str] = {}
        #: --cpu-quota and --cpu-period in microseconds, which together are ``cpus``; the kernel's usual period.
        self.quota: tuple[int, Origin] | None = None
        self.period = 100_000
        #: Whether a port without an address is open to all addresses, as docker has it.
        self.everywhere = True
        #: Whether a read-only root comes with tmpfs where programs write, as podman has it; _TMPFS.
        self.read_only_tmpfs = False
        #: The health check; see health().
        self.test: list[str] = []
        self.probe: dict[str, Any] = {}
        self.probe_origin = Origin("", "")

    def note(self, origin: Origin, what: str, hint: str = "", *, by_hand: bool = True) -> None:
        """Adds a note to the pod."""
        self.pod.note(origin, what, hint, by_hand=by_hand)

    # --- mounts -------------------------------------------------------------------------------------------------

    def short_mount(self, text: str, origin: Origin) -> None:
        """A mount in docker's short spelling: [SOURCE:]TARGET[:OPTIONS]."""
        fields = text.split(":")
        if len(fields) == 1:
            self.anonymous(fields[0], [], origin)
        elif len(fields) > 3 or not all(fields[:2]):
            self.note(origin, f"{text!r} is not a mount: expected [SOURCE:]TARGET[:OPTIONS]")
        else:
            self.mount(fields[0], fields[1], fields[2].split(",") if len(fields) == 3 else [], origin)

    def anonymous(self, target: str, options: list[str], origin: Origin) -> None:
        """A volume without a name: docker makes one that lives as long as the container."""
        if options:
            name = f"{self.pod.name.partition('@')[0]}{target.replace('/', '-').rstrip('-')}"
            self.note(
                origin, f"a volume without a name became the volume {name}, which outlives the pod", by_hand=False
            )
            self._mount(f"volume:{_volume_name(name)}", target, options, origin)
        else:
            self.step.append("volumes", target, origin)

    def mount(self, source: str, target: str, options: list[str], origin: Origin) -> None:
        """A path of the host (absolute, relative, "~/...") or a named volume."""
        if "/" in source or source in (".", "..", "~") or source.startswith(OPEN):
            path = absolute(source, self.directory, self.home)
            if not is_open(path) and not os.path.exists(path):
                self.note(
                    origin, f"there is no {path} on this host yet", "create it; docker would have made a directory"
                )
            self._mount(path, target, options, origin)
        elif source in self.volumes:
            self.storage(self.volumes[source], target, options, origin)
        else:
            self._mount(f"volume:{self.volume_names.get(source, source)}", target, options, origin)

    def _mount(self, source: str, target: str, options: list[str], origin: Origin) -> None:
        words = [word for word in options if word not in _IDLE]
        if target == "/" or not target.startswith(("/", "\ufdd0")):
            self.note(origin, f"{target!r} cannot be a mount's target: expected an absolute path in the container")
        elif "O" in words or any(c in f"{source.removeprefix('volume:')}{target}" for c in ":,"):
            table = {"source": source} | ({"options": words} if words else {})
            self.storage(table, target, [], origin)
        else:
            spelled = ":".join([source.removeprefix("volume:"), target, *([",".join(words)] if words else [])])
            self.step.append("volumes", spelled, origin)

    def storage(self, table: dict[str, Any], target: str, options: list[str], origin: Origin) -> None:
        """A storage step for this container. ``table``: its source, and what else belongs to it."""
        step = Step("storage", source=table["source"], target=target)
        words = [*table.get("options", []), *(word for word in options if word not in _IDLE)]
        step.values.update({key: value for key, value in table.items() if key not in ("source", "options")})
        if words:
            step.values["options"] = words
        if self.name:
            step.values["for"] = [self.name]
        step.origins = dict.fromkeys(step.values, origin)
        self.mounts.append(step)

    def tmpfs(self, text: str, origin: Origin) -> None:
        """A tmpfs in docker's spelling: TARGET[:OPTIONS]."""
        target, colon, options = text.partition(":")
        words = [size(word) if word.startswith("size=") else word for word in options.split(",") if colon and word]
        self.step.append("tmpfs", f"{target}:{','.join(words)}" if words else target, origin)

    # --- health -------------------------------------------------------------------------------------------------

    def health(self, test: list[str], origin: Origin, **keys: Any) -> None:
        """A health check: the command, and of interval, timeout, retries, start_period, on_failure what is there."""
        self.test = test or self.test
        self.probe.update({key: value for key, value in keys.items() if value not in (None, "")})
        if test or not self.probe_origin.key:
            self.probe_origin = origin

    def awaited(self, origin: Origin) -> None:
        """Somebody waits until the container is healthy: that is then when it counts as started."""
        if "ready" in self.step.values:
            return
        if not self.test:
            self.step.set("health", "image", origin)
            return
        every = _seconds(self.probe.get("interval", 30))
        period = _seconds(self.probe.get("start_period", 0))
        tries = self.probe.get("retries", 3)
        limit = period + (every + _seconds(self.probe.get("timeout", 30))) * (tries if isinstance(tries, int) else 3)
        self.step.set("ready", {"exec": list(self.test), "timeout": f"{limit:g}s"}, origin)

    def _finish_health(self) -> None:
        if not self.test:
            return
        live: dict[str, Any] = {"exec": list(self.test)}
        failure = self.probe.pop("on_failure", "")
        if "ready" in self.step.values and self.probe.pop("start_period", ""):
            self.note(self.probe_origin, "start_period: `live` begins when the container is ready", by_hand=False)
        # Docker's defaults are not podrun's.
        live |= {"interval": "30s", "timeout": "30s"} | self.probe
        if failure == "none":
            live["on_failure"] = "none"
        self.step.set("live", live, self.probe_origin)
        if not failure:
            self.note(
                self.probe_origin,
                "docker only marks what fails its health check; podrun ends it, and Restart= starts it again",
                "remove `live` to go without",
                by_hand=False,
            )

    # --- the whole ----------------------------------------------------------------------------------------------

    def network_steps(self) -> list[Step]:
        """Its networks; on each of them others know it by the same name."""
        if self.network.values.get("mode") == "host" and self.network.values.pop("publish", None):
            origin = self.network.origins.pop("publish")
            self.note(origin, "discarded: in the host's network every port is the host's", by_hand=False)
        name = self.network.values.get("hostname")
        for step in self.networks:
            if name and "hostname" not in step.values:
                step.set("hostname", name, self.network.origins["hostname"])
        return [self.network, *self.networks]

    def finish(self) -> list[Step]:
        """The steps, in the order of the start; the network steps are the pod's and not among them."""
        self._finish_health()
        if self.quota and self.quota[0] > 0 and "cpus" not in self.step.values:
            self.step.set("cpus", round(self.quota[0] / self.period, 4), self.quota[1])
        if self.step.values.get("read_only") and self.read_only_tmpfs:
            for path in _TMPFS:
                self.tmpfs(path, self.step.origins["read_only"])
        if self.name:
            self.image.values = {"name": self.name, **self.image.values}
            self.step.values = {"name": self.name, "image": self.name, **self.step.values}
        return [self.image, *self.mounts, self.step]


def _volume_name(text: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in text)[:128]


def _seconds(value: Any) -> float:
    from podrun.options import DURATION, Wrong

    try:
        return DURATION.parse(value)
    except Wrong:
        return 30.0
