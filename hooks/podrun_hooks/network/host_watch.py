"""Has systemd notice when the host's resolv.conf and hosts change (systemd.path(5)): no process stays for it."""

from __future__ import annotations

import os

from podrun.identity import of_run
from podrun_hooks.support.subprocesses import program, silent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: What runs when a file has changed: a module, whose ``refresh`` is called with the run directory.
_PROGRAM = "podrun_hooks.network.host_files"
#: What tests and people without systemd say: "no".
_VARIABLE = "PODRUN_SYSTEMD"


def watch(run: str, paths: Sequence[str]) -> None:
    """Has systemd watch these files for the pods of a run directory, unless it does already."""
    name = of_run("podrun-host-files", run)  # the unit's, without its kind
    if os.environ.get(_VARIABLE) == "no" or os.geteuid():
        return
    if any(os.path.exists(f"{place}/{name}.path") for place in ("/run/systemd/transient", "/etc/systemd/system")):
        return
    argv = ["/usr/bin/systemd-run", "--quiet", "--no-block", f"--unit={name}"]
    argv += ["--description=podrun: pods see changes of the host's resolv.conf and hosts"]
    argv += [f"--path-property=PathChanged={path}" for path in paths]
    argv += ["--property=StartLimitIntervalSec=0", "--property=CapabilityBoundingSet=CAP_DAC_OVERRIDE"]
    try:
        silent([*argv, "--", *program(_PROGRAM, f"refresh({run!r})")])
    except OSError:
        pass  # without systemd-run nobody watches; 'podrun network refresh' does it by hand
