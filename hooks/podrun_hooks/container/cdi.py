"""Devices by the names that their vendors' specifications give them (CDI): "nvidia.com/gpu=all" in ``devices``.

A specification says which device nodes, mounts, variables and runtime hooks a device comes with
(https://github.com/cncf-tags/container-device-interface, SPEC.md). podrun's facts have the same form, so it is added to
them as if a step had given it. Its runtime hooks run as root on the host: only a file that nobody but root can change
is believed.
"""

from __future__ import annotations

import os

from podrun import jsontext
from podrun.errors import UNAVAILABLE, WRONG_FILE, Failure
from podrun_hooks.support import trusted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from podrun.hook import Facts

#: Those in the second place win (SPEC.md, "CDI JSON Specification").
PLACES = ("/etc/cdi", "/var/run/cdi")
_MOST_FILES = 256
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:")


def is_name(text: str) -> bool:
    """Whether it is spelled as vendor/class=device, and not as a path of the host."""
    kind, equals, device = text.partition("=")
    vendor, slash, name = kind.partition("/")
    return bool(equals and slash and vendor and name and device) and set(vendor + name + device) <= _LETTERS


def edits(texts: Sequence[str]) -> Facts:
    """What the named devices bring, as facts: env, deviceNodes, mounts, hooks and additionalGids. Raises Failure."""
    specs = list(_specs()) if texts else []
    whole: Facts = {}
    used: list[int] = []
    for text in texts:
        kind, _, name = text.partition("=")
        found = [
            (n, device) for n, spec in enumerate(specs) for device in _devices(spec, kind) if device["name"] == name
        ]
        if not found:
            raise Failure(f"there is no device {text}", code=UNAVAILABLE, hint=_hint(specs))
        number, device = found[-1]
        if number not in used:
            # Once for the specification, before the edits of its devices.
            used.append(number)
            _add(whole, specs[number].get("containerEdits"), text)
        _add(whole, device.get("containerEdits"), text)
    return whole


def _hint(specs: Sequence[dict[str, Any]]) -> str:
    known = [f"{spec['kind']}={device['name']}" for spec in specs for device in _devices(spec, spec["kind"])]
    if known:
        return f"there are: {', '.join(sorted(set(known))[:10])}"
    return f"its vendor's tool writes a specification into {PLACES[0]}: nvidia-ctk cdi generate, for one"


def _specs() -> Iterator[dict[str, Any]]:
    for place in PLACES:
        try:
            names = sorted(os.listdir(place))
        except OSError:
            continue
        for name in names[:_MOST_FILES]:
            if name.endswith((".json", ".yaml", ".yml")):
                yield _read(f"{place}/{name}")


def _read(path: str) -> dict[str, Any]:
    text = trusted.text(path, PLACES[0])
    try:
        if path.endswith(".json"):
            found = jsontext.loads(text)
        else:
            import yaml

            found = yaml.safe_load(text)
    except ModuleNotFoundError:
        raise Failure(
            f"{path}: podrun reads YAML with PyYAML", code=UNAVAILABLE, hint="apt install python3-yaml"
        ) from None
    except (ValueError, RecursionError) as error:
        raise Failure(f"{path}: {str(error).splitlines()[0]}", code=WRONG_FILE) from None
    except Exception as error:
        raise Failure(f"{path}: {type(error).__name__} where YAML was expected", code=WRONG_FILE) from error
    if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
        raise Failure(f"{path}: a CDI specification is a table with a kind", code=WRONG_FILE)
    return found


def _devices(spec: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    devices = spec.get("devices") if spec["kind"] == kind else []
    return [one for one in devices if isinstance(one, dict) and "name" in one] if isinstance(devices, list) else []


def _add(whole: Facts, given: Any, text: str) -> None:
    """Adds one containerEdits table; what podrun cannot do, of a later version of CDI, is told."""
    for key, value in (given or {}).items() if isinstance(given, dict) else ():
        if key not in ("env", "deviceNodes", "mounts", "hooks", "additionalGids"):
            what = f"the specification of {text} asks for {key}, which podrun does not know"
            raise Failure(what, code=UNAVAILABLE)
        if not isinstance(value, list):
            raise Failure(f"the specification of {text}: {key} is not a list", code=WRONG_FILE)
        whole.setdefault(key, []).extend(value)
