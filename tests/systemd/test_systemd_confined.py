"""What confines a container holds in a unit as it does in the foreground: targets, ids, capabilities, limits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.systemd_case import IMAGE, NETWORK, PATIENT, container, main_pid, sh, show, systemctl, until, words

pytestmark = pytest.mark.systemd


@pytest.fixture
def subids():
    """A range of ids for podrun."""
    for path in map(Path, ("/etc/subuid", "/etc/subgid")):
        if "podrun:" not in (path.read_text() if path.exists() else ""):
            with path.open("a") as file:
                file.write("podrun:1073741824:16777216\n")


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_unit_whose_pod_has_ids_of_its_own_starts_answers_and_leaves_nothing(pods, subids, runtime):
    pods.install("web", IMAGE, NETWORK, container(PATIENT, runtime=f"'''{runtime}'''"), pod='userns = "auto"')
    assert systemctl("start", "web").returncode == 0, words("web")
    pid = main_pid("web")
    inside, first, count = Path(f"/proc/{pid}/uid_map").read_text().split()
    assert (inside, count) == ("0", "65536") and int(first) >= 1073741824
    assert f"Uid:\t{first}\t" in Path(f"/proc/{pid}/status").read_text()
    assert sh("podrun", "exec", "web", "id", "-u").stdout == "0\n"
    assert os.listdir("/run/podrun/userns") == [first]
    assert os.stat("/dev/null").st_uid == 0
    assert systemctl("stop", "web").returncode == 0
    assert show("web", "Result") == ["success"]
    assert os.listdir("/run/podrun/userns") == []


def test_a_killed_payload_of_such_a_unit_starts_again_with_a_range(pods, subids):
    pods.install(
        "web", IMAGE, container(PATIENT), pod='userns = "auto"', service='Restart = "always"\nRestartSec = "100ms"'
    )
    assert systemctl("start", "web").returncode == 0, words("web")
    before = main_pid("web")
    os.kill(before, 9)
    until(lambda: main_pid("web") not in (0, before))
    assert Path(f"/proc/{main_pid('web')}/uid_map").read_text().split()[2] == "65536"
    assert len(os.listdir("/run/podrun/userns")) == 1


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_user_of_a_unit_has_no_capabilities_2048_processes_and_no_namespaces(pods, runtime):
    script = "grep Cap /proc/self/status; unshare -U true || echo REFUSED; exec sleep 1000"
    pods.install("web", IMAGE, NETWORK, container(script, user="1000", runtime=f"'''{runtime}'''"))
    assert systemctl("start", "web").returncode == 0, words("web")
    pid = main_pid("web")
    status = Path(f"/proc/{pid}/status").read_text()
    assert "CapEff:\t0000000000000000\nCapBnd:" in status
    assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
    until(lambda: "REFUSED" in sh("podrun", "logs", "web").stdout, why=lambda: words("web"))
    assert Path("/sys/fs/cgroup/system.slice/web.service/main/pids.max").read_text() == "2048\n"


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_unit_is_refused_a_target_that_a_link_leads_into_dev(pods, tmp_path, runtime):
    (tmp_path / "outer").mkdir()
    (tmp_path / "inner").mkdir()
    (tmp_path / "outer/sub").symlink_to("/dev")
    volumes = f'["{tmp_path}/outer:/mnt", "{tmp_path}/inner:/mnt/sub"]'
    pods.install("web", IMAGE, container(PATIENT, volumes=volumes, runtime=f"'''{runtime}'''"))
    assert systemctl("start", "web").returncode != 0
    assert "it leads to /dev" in words("web")
    assert list((tmp_path / "inner").iterdir()) == []
