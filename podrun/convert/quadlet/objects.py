"""The units that others refer to: volumes, networks, images; each is read once and told of once."""

from __future__ import annotations

import os
from typing import Any

from podrun.errors import WRONG_FILE, Failure

from ..draft import INSTANCE, Draft, Origin, Pod, Step, link_name
from . import unitfile
from .unitfile import Unit

_SERVICE_SUFFIX = {"container": "", "kube": "", "pod": "-pod"}


class Units:
    """The units of a conversion by name, and those beside them that they refer to."""

    def __init__(self, given: dict[str, Unit], draft: Draft) -> None:
        self.given = given
        self.draft = draft
        self._told: set[str] = set()

    def find(self, name: str, asking: Unit) -> Unit | None:
        """A unit by its file's name: a given one, or one beside the one that refers to it."""
        for candidate in (name, f"{name.partition('@')[0]}@.{name.rpartition('.')[2]}" if "@" in name else name):
            if candidate in self.given:
                return self.given[candidate]
            path = f"{asking.directory}/{candidate}"
            if "/" not in candidate and os.path.isfile(path):
                return unitfile.read(path)
        return None

    def need(self, name: str, asking: Unit, origin: Origin) -> Unit:
        """The same; raises Failure when it is not there."""
        unit = self.find(name, asking)
        if unit is None:
            raise Failure(f"{origin.where}: {origin.key}: there is no {name}", code=WRONG_FILE)
        return unit

    def members(self, pod: Unit) -> list[Unit]:
        """The containers of a .pod: those given, and those beside it."""
        found = {unit.name: unit for unit in self.given.values()}
        for name in sorted(os.listdir(pod.directory)):
            if name.endswith(".container") and name not in found:
                found[name] = unitfile.read(f"{pod.directory}/{name}")
        return [
            unit
            for _, unit in sorted(found.items())
            if unit.kind == "container" and unit.last("Container", "Pod") == pod.name
        ]

    # --- what a reference means ---------------------------------------------------------------------------------

    def volume(self, name: str, asking: Unit) -> dict[str, Any] | None:
        """What a .volume is for a storage step; None: a plain named volume. Unknown keys are noted."""
        unit = self.need(name, asking, Origin(asking.name, name))
        note = self._notes(unit)
        keys = {key: unit.last("Volume", key) for key in unit.keys("Volume")}
        options = [word for value, _ in unit.all("Volume", "Options") for word in value.split(",") if word]
        for key in keys:
            for value, where in unit.all("Volume", key):
                _volume_key(key, value, where, note)
        if "Copy" in keys and not unitfile.boolean(keys["Copy"] or "yes"):
            options.append("nocopy")
        if keys.get("Driver") == "image" or (keys.get("Driver") is None and "Image" in keys):
            image = keys.get("Image", "")
            if not image:
                raise Failure(f"{unit.name}: Driver=image without Image", code=WRONG_FILE)
            if image.endswith((".image", ".build")):
                image = self.reference(image, unit, Origin(unit.name, "Image"))
            return {"source": f"image:{image}"}
        if keys.get("Driver", "local") != "local":
            note(Origin(unit.name, "Driver"), f"{keys['Driver']!r} has no equivalent", "use a storage step with type")
        device, kind = keys.get("Device", ""), keys.get("Type", "")
        if device and kind in ("bind", "none", "") and (kind or "bind" in options):
            return {"source": device, "options": [word for word in options if word not in ("bind", "nocopy")]}
        if kind == "tmpfs" or device == "tmpfs":
            return {"source": "tmpfs:", "options": [word for word in options if word != "nocopy"]}
        if device:
            return {"source": device, "type": kind or "auto", "options": [w for w in options if w != "nocopy"]}
        if [word for word in options if word != "nocopy"]:
            note(Origin(unit.name, "Options"), f"{','.join(options)}: without Device= there is nothing to mount")
        return None

    def volume_name(self, name: str, asking: Unit) -> str:
        """What the named volume of a .volume is called."""
        unit = self.need(name, asking, Origin(asking.name, name))
        return (
            unit.last("Volume", "VolumeName") or f"{unit.stem.replace('@', '-')}{INSTANCE if unit.is_template else ''}"
        )

    def network(self, name: str, asking: Unit, origin: Origin | None = None) -> tuple[str, str]:
        """What a .network is: (key, value) of a network step, and its table in networks.toml."""
        unit = self.need(name, asking, origin or Origin(asking.name, name))
        bridge = link_name(unit.last("Network", "NetworkName") or unit.stem.rstrip("@"))
        driver = unit.last("Network", "Driver") or "bridge"
        if unit.name in self._told:
            return ("mode", "macvlan:eth0") if driver == "macvlan" else ("bridge", bridge)
        note = self._notes(unit)
        step = Step("networks")
        for key in unit.keys("Network"):
            for value, where in unit.all("Network", key):
                _network_key(step, key, value, where, note)
        if unit.is_template:
            note(Origin(unit.name, ""), f"one bridge {bridge} for all instances", "name another one in a drop-in")
        if driver == "macvlan":
            note(Origin(unit.name, "Driver"), "macvlan needs the host's link", 'say mode = "macvlan:LINK" in the pods')
            return "mode", "macvlan:eth0"
        if driver != "bridge":
            note(Origin(unit.name, "Driver"), f"{driver!r} has no equivalent: the pods are on a bridge")
        if step.values:
            self.draft.networks[bridge] = step
        else:
            note(Origin(unit.name, ""), f"the bridge {bridge} is made when a pod names it", by_hand=False)
        return "bridge", bridge

    def image(self, name: str, asking: Unit, pod: Pod) -> Step:
        """The image step of an .image."""
        unit = self.need(name, asking, Origin(asking.name, "Image"))
        ref = unit.last("Image", "Image")
        if not ref:
            raise Failure(f"{unit.name}: Image is missing", code=WRONG_FILE)
        origin = unit.all("Image", "Image")[-1][1]
        step = Step("image")
        step.set("ref", unitfile.unquoted(ref), origin)
        architecture = {"aarch64": "arm64", "x86_64": "amd64"}.get(
            unit.last("Image", "Arch"), unit.last("Image", "Arch")
        )
        system, variant = unit.last("Image", "OS"), unit.last("Image", "Variant")
        if architecture or system or variant:
            parts = [system or "linux", architecture or "amd64", *([variant.rpartition("/")[2]] if variant else [])]
            where = next(unit.all("Image", key)[-1][1] for key in ("Arch", "OS", "Variant") if unit.all("Image", key))
            step.set("platform", "/".join(parts), where)
        known = {"Image", "ImageTag", "Arch", "OS", "Variant", "ServiceName", "Policy", "Retry", "RetryDelay"}
        hints = {
            "AuthFile": "run `podrun login`, or write /etc/podrun/auth.json",
            "Creds": "run `podrun login`: a password does not belong in a file that others read",
            "CertDir": "put the certificates into /etc/containers/certs.d/HOST",
            "TLSVerify": "say it in registries.conf(5)",
        }
        for key in unit.keys("Image"):
            for value, where in unit.all("Image", key):
                if key == "Policy":
                    step.set("pull", value, where)
                elif key not in known:
                    shown = "" if key in ("Creds", "DecryptionKey") else f"{value}: "
                    pod.note(where, f"{shown}podrun has no equivalent", hints.get(key, ""))
        return step

    def reference(self, name: str, asking: Unit, origin: Origin) -> str:
        """The image's name that a .image or .build stands for."""
        unit = self.need(name, asking, origin)
        if unit.kind == "build":
            tag = unit.last("Build", "ImageTag")
            self.draft.note(origin, f"{name}: podrun builds no images", f"build {tag} and bring it to this host")
            return tag
        return unit.last("Image", "ImageTag") or unit.last("Image", "Image")

    def service(self, name: str, asking: Unit) -> str:
        """The unit that podrun makes of a Quadlet unit; "" when there is none."""
        kind = name.rpartition(".")[2]
        if kind in ("container", "kube", "pod"):
            unit = self.find(name, asking)
            own = unit.last(kind.title(), "ServiceName") if unit else ""
            return f"{own or name.rpartition('.')[0]}.service"
        return "" if kind in ("network", "volume", "image", "build", "artifact") else name

    def _notes(self, unit: Unit) -> Any:
        """The draft's note for the first look at a unit, and silence after it."""
        if unit.name in self._told:
            return lambda *_, **__: None
        self._told.add(unit.name)
        return self.draft.note


def _volume_key(key: str, value: str, origin: Origin, note: Any) -> None:
    if key in ("Device", "Type", "Options", "Driver", "Image", "VolumeName", "ServiceName", "Copy"):
        return
    if key in ("User", "Group", "UID", "GID"):
        if value not in ("root", "0"):
            note(origin, f"{value}: a volume belongs to root until somebody changes that", "chown it once")
    else:
        note(origin, f"{value}: podrun has no equivalent", by_hand=key != "Label")


def _network_key(step: Step, key: str, value: str, origin: Origin, note: Any) -> None:
    family = "subnet6" if ":" in value else "subnet"
    if key in ("NetworkName", "Driver", "ServiceName"):
        return
    if key == "Subnet":
        if family in step.values:
            note(origin, f"a bridge has one subnet of each family: {value} is left out")
        else:
            step.set(family, value, origin)
    elif key == "DNS":
        step.append("dns", value, origin)
    elif key == "Options" and value.startswith("mtu="):
        step.set("mtu", int(value[4:]) if value[4:].isdecimal() else value[4:], origin)
    elif key == "Gateway":
        note(origin, f"{value}: a bridge of podrun's has the first address of its subnet", by_hand=False)
    elif key == "IPRange":
        note(origin, f"{value}: podrun leases from the whole subnet", "give fixed addresses by address")
    elif key == "IPv6":
        note(origin, "podrun's bridges always have IPv6", by_hand=False)
    elif key in ("Label", "NetworkDeleteOnStop", "DisableDNS"):
        why = {"Label": "a bridge has no labels", "DisableDNS": "podrun has no DNS server: names are in /etc/hosts"}
        note(origin, why.get(key, "an unused bridge does no harm; `podrun network` shows them"), by_hand=False)
    elif key == "Internal":
        step.set("internal", value.lower() in ("1", "yes", "y", "true", "t", "on"), origin)
    else:
        note(origin, f"{value}: podrun has no equivalent")
