"""A .kube unit: the manifests that it names, with what the unit says of them."""

from __future__ import annotations

import os

from podrun.errors import WRONG_FILE, Failure

from .. import kube, options
from ..container import Container
from ..draft import Draft, Origin
from . import sections, unitfile
from .objects import Units
from .unitfile import Unit

_KNOWN = frozenset("Yaml ConfigMap Network PublishPort ServiceName SetWorkingDirectory LogDriver LogOpt".split())
_WHY = {
    "AutoUpdate": 'restart the pod from a timer, with pull = "newer" in the image step',
    "ExitCodePropagation": "each container has a unit of its own that tells its status",
    "KubeDownForce": "`podrun down` removes all but named volumes",
}


def convert(unit: Unit, units: Units, draft: Draft) -> None:
    """The pods of a .kube unit. Raises Failure (WRONG_FILE) when a manifest is not there."""
    files = [_path(unit, value) for value, _ in unit.all("Kube", "Yaml")]
    if not files:
        raise Failure(f"{unit.name}: Yaml is missing", code=WRONG_FILE)
    if len(files) > 1 and unit.last("Kube", "SetWorkingDirectory") == "yaml":
        raise Failure(f"{unit.name}: SetWorkingDirectory=yaml: there are several", code=WRONG_FILE)
    maps = [_path(unit, value) for value, _ in unit.all("Kube", "ConfigMap")]
    before = len(draft.pods)
    try:
        kube.read(draft, [*maps, *files])
    except Failure as failure:
        raise Failure(f"{unit.name}: Yaml: {failure.what}", code=failure.code, hint=failure.hint) from None
    pods = draft.pods[before:]
    for pod in pods:
        holder = Container(pod, directory=unit.directory)
        network = next((step for step in pod.steps if step.hook == "network"), holder.network)
        holder.network = network
        for key in unit.keys("Kube"):
            for value, origin in unit.all("Kube", key):
                if key == "PublishPort" and pod is pods[0]:
                    options.apply(holder, "publish", unitfile.unquoted(value), origin)
                elif key == "Network":
                    if value.partition(":")[0].endswith(".network"):
                        network.set(*units.network(value.partition(":")[0], unit, origin), origin)
                    else:
                        options.apply(holder, "network", value, origin)
                elif key in ("LogDriver", "LogOpt"):
                    options.apply(holder, {"LogDriver": "log-driver", "LogOpt": "log-opt"}[key], value, origin)
                elif key == "PodmanArgs":
                    from ..commandline import options as command_line

                    command_line(holder, unitfile.words(value), origin)
                elif key not in _KNOWN:
                    pod.note(origin, f"{value}: podrun has no equivalent", _WHY.get(key, ""))
        # Only [Install] has a Quadlet unit started at boot.
        pod.sections.pop("install", None)
        sections.convert(unit, units, pod)
    if not pods:
        draft.note(Origin(unit.name, "Yaml"), "the manifests hold no pod")


def _path(unit: Unit, value: str) -> str:
    base = unit.directory
    return os.path.join(base, unitfile.unquoted(value))
