"""Quadlet units (podman-systemd.unit(5)): containers and pods become pods, networks go to networks.toml."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from podrun.errors import WRONG_FILE, Failure

from ..draft import Draft, Origin, Pod, identity
from . import container, kube, objects, unitfile
from .unitfile import Unit

KINDS = ("container", "pod", "kube", "volume", "network", "image", "build", "artifact")
#: Of a directory and those below it.
_UNITS = 1000


def convert(paths: Sequence[str], environ: Mapping[str, str]) -> Draft:
    """The pods of Quadlet units: files, or directories with all units in them. What they refer to is read with them.

    Raises Failure (WRONG_FILE) for what is no unit.
    """
    draft = Draft()
    given = _given(paths)
    units = objects.Units({unit.name: unit for unit in given}, draft)
    for unit in given:
        _convert(unit, units, draft, environ)
    return draft


def _given(paths: Sequence[str]) -> list[Unit]:
    found: list[Unit] = []
    for path in paths:
        if not os.path.isdir(path):
            if path.rpartition(".")[2] not in KINDS:
                raise Failure(f"{path}: expected a name that ends in .{', .'.join(KINDS)}", code=WRONG_FILE)
            found.append(unitfile.read(path))
            continue
        for directory, _, names in sorted(os.walk(path)):
            if directory.endswith(".d"):
                continue
            found += [
                unitfile.read(f"{directory}/{name}") for name in sorted(names) if name.rpartition(".")[2] in KINDS
            ]
            if len(found) > _UNITS:
                raise Failure(f"{path} has more than {_UNITS} units", code=WRONG_FILE)
    if not found:
        raise Failure(f"there are no Quadlet units in {', '.join(paths)}", code=WRONG_FILE)
    return found


def _convert(unit: Unit, units: objects.Units, draft: Draft, environ: Mapping[str, str]) -> None:
    origin = Origin(unit.name, "")
    if unit.kind == "container":
        pod = unit.last("Container", "Pod")
        if not pod:
            draft.add(container.alone(unit, units, environ))
            return
        whole = units.find(pod, unit)
        if whole is None:
            hint = "it is not beside it" if pod.endswith(".pod") else "Pod= names a .pod unit"
            raise Failure(f"{unit.name}: Pod: there is no {pod}", code=WRONG_FILE, hint=hint)
        # The pod is the file, and holds all its containers.
        if whole.name not in units.given:
            units.given[whole.name] = whole
            draft.add(container.pod_of(whole, units, environ))
    elif unit.kind == "pod":
        draft.add(container.pod_of(unit, units, environ))
    elif unit.kind == "kube":
        kube.convert(unit, units, draft)
    elif unit.kind == "network":
        units.network(unit.name, unit)
    elif unit.kind == "volume":
        _volume(unit, units, draft)
    elif unit.kind == "image":
        _image(unit, units, draft)
    elif unit.kind == "build":
        tags = ", ".join(value for value, _ in unit.all("Build", "ImageTag")) or "IMAGE"
        raise Failure(
            f"{unit.name}: [Build]: podrun builds no images",
            code=WRONG_FILE,
            hint=f"build {tags} with podman build, and bring it with `podrun image pull`",
        )
    else:
        raise Failure(
            f"{unit.name}: [{unit.kind.title()}]: podrun has images, and no other artifacts",
            code=WRONG_FILE,
            hint='put the files into an image, and mount it with source = "image:REF"',
        )
    if unit.kind in ("network", "volume", "image"):
        _others(unit, draft, origin)


def _others(unit: Unit, draft: Draft, origin: Origin) -> None:
    for section in ("Unit", "Service", "Install"):
        for key in unit.keys(section):
            for value, place in unit.all(section, key):
                draft.note(
                    place._replace(key=f"[{section}] {key}"),
                    f"{value}: there is no unit for a {unit.kind}: pods make what they need",
                    by_hand=False,
                )


def _volume(unit: Unit, units: objects.Units, draft: Draft) -> None:
    table = units.volume(unit.name, unit)
    what = table["source"] if table else unit.stem
    draft.note(Origin(unit.name, ""), f"{what} is made when a pod names it: nothing to do", by_hand=False)


def _image(unit: Unit, units: objects.Units, draft: Draft) -> None:
    """A pod of its own that only brings the image, unless a container that is converted with it does."""
    if any(
        unquoted.startswith(unit.name)
        for other in units.given.values()
        for key in ("Image", "Mount")
        for unquoted, _ in other.all(other.kind.title(), key)
    ):
        return
    pod = Pod(identity(unit.last("Image", "ServiceName") or f"{unit.stem}-image"), Origin(unit.name, ""))
    pod.steps.append(units.image(unit.name, unit, pod))
    draft.add(pod)
