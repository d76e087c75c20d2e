"""A unit whose pod has a user namespace of its own: on a file system that has idmapped mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.systemd_case import IMAGE, NETWORK, PATIENT, Pods, container, main_pid, sh, systemctl, words

pytestmark = pytest.mark.qemu


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_unit_has_a_range_of_ids_of_its_own(pods: Pods, runtime: str) -> None:
    for path in (Path("/etc/subuid"), Path("/etc/subgid")):
        path.write_text("podrun:1073741824:16777216\n")
    payload = container(f"cat /proc/self/uid_map; {PATIENT}", runtime=f'"{runtime}"')
    pods.install("web", IMAGE, NETWORK, payload, pod='userns = "auto"')
    assert systemctl("start", "web").returncode == 0, words("web")
    inside, outside, count = Path(f"/proc/{main_pid('web')}/uid_map").read_text().split()
    assert (inside, count) == ("0", "65536")
    assert int(outside) >= 1073741824
    assert Path(f"/proc/{main_pid('web')}").stat().st_uid == int(outside)
    assert sh("podrun", "exec", "web", "id", "-u").stdout == "0\n"
    systemctl("stop", "web")
    pods.nothing_left()
