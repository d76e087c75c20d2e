"""What the generator does at boot and at daemon-reload: the units of every pod file of the host, and their links.

It is a generator (systemd.generator(7)): nothing is mounted yet but /, and it must neither fail nor wait.
"""

from __future__ import annotations

import glob
import os
import re
import sys

from podrun import host_defaults
from podrun.errors import Failure
from podrun.options import Wrong
from podrun.systemd import following
from podrun.systemd.syntax import links, quoted
from podrun.systemd.units import ETC, VENDORS, read, units, with_defaults

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from podrun.podfile.known_hooks import Known
    from podrun.systemd.units import Command


def generate(directory: str, podrun: Command, known: Mapping[str, Known], etc: str = ETC) -> None:
    """Writes the units of every pod file in ``etc`` into ``directory``. No file hides another one."""
    try:
        given = host_defaults.read(f"{etc}/podrun.toml")
    except Failure:
        given = {}  # the pods' own start says what is wrong with it
    placed = {following.GC}
    if not any(os.path.lexists(f"{place}/{following.GC}") for place in VENDORS):
        _place(directory, following.GC, following.collecting(podrun.line("gc")))
    for path in [*_files(etc), *_instances(etc)]:
        try:
            pod = with_defaults(read(path, known), given)
            if not os.path.exists(path):
                # Its drop-ins change the instance; whether it starts at boot is for systemctl enable to say.
                pod.sections["install"].clear()
            made = units(pod, podrun)
        except Exception as error:
            _tell(f"{path}: {error}")
            try:
                made = broken(path, str(error), podrun)
            except Wrong as wrong:
                _tell(str(wrong))
                continue
        for unit, text in made.items():
            if unit in following.OF_ALL and unit in placed:
                continue
            placed.add(unit)
            try:
                _place(directory, unit, text)
            except OSError as error:
                _tell(f"{path}: {unit}: {error}")


def broken(path: str, what: str, podrun: Command) -> dict[str, str]:
    """The unit of a pod file that cannot be read: starting it fails with the pod file's error. It starts at boot."""
    name = os.path.basename(path).removesuffix(".toml")
    line = "".join(c if c.isprintable() else " " for c in what).replace("%", "%%").rstrip("\\")
    if not re.fullmatch(r"[A-Za-z0-9:_.@-]+", name):
        raise Wrong(f"{path!r} cannot be the name of a unit")
    file = quoted(path.removesuffix("@.toml"), "@%i.toml") if name.endswith("@") else quoted(path)
    lines = [f"# {path}: {line}", "[Unit]", f"Description=podrun pod {name}: {line}", "", "[Service]", "Type=oneshot"]
    lines += [f"ExecStart={podrun.line('up', file)}"]
    lines += [] if name.endswith("@") else ["", "[Install]", "WantedBy=multi-user.target"]
    return {f"{name}.service": "\n".join(lines) + "\n"}


def _files(directory: str) -> list[str]:
    """The pod files of a directory, in the order of their names."""
    found = sorted(glob.glob(f"{glob.escape(directory)}/*.toml"))
    return [path for path in found if os.path.basename(path) not in following.NO_PODS]


def _instances(directory: str) -> Iterator[str]:
    """The instances of templates that have drop-ins of their own but no file: their units are not the template's."""
    for beside in sorted(glob.glob(f"{glob.escape(directory)}/*@*.toml.d")):
        path = beside.removesuffix(".d")
        template, _, instance = path.partition("@")
        if instance != ".toml" and not os.path.exists(path) and os.path.exists(f"{template}@.toml"):
            yield path


def _place(directory: str, unit: str, text: str) -> None:
    vendor = next((place for place in VENDORS if os.path.lexists(f"{place}/{unit}")), None)
    if vendor:
        _tell(f"{unit} is not generated: it would hide {vendor}/{unit}; give the pod another name")
        return
    with open(f"{directory}/{unit}", "x", encoding="utf-8") as file:
        file.write(text)
    for link in links(unit, text):
        path = f"{directory}/{link}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(f"../{unit}", path)


def _tell(line: str) -> None:
    """One line for the journal: a generator has the kernel's log only (systemd.generator(7))."""
    try:
        with open("/dev/kmsg", "w", encoding="utf-8") as kmsg:
            kmsg.write(f"<3>podrun-generator: {''.join(c if c.isprintable() else ' ' for c in line)}")
    except OSError:
        print(f"podrun-generator: {line}", file=sys.stderr)
