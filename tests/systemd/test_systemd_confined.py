"""What confines a container holds in a unit as it does in the foreground: targets, capabilities, limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.systemd_case import IMAGE, NETWORK, PATIENT, Pods, container, main_pid, sh, systemctl, until, words

pytestmark = pytest.mark.systemd


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_user_of_a_unit_has_no_capabilities_2048_processes_and_no_namespaces(pods: Pods, runtime: str) -> None:
    script = "grep Cap /proc/self/status; unshare -U true || echo REFUSED; exec sleep 1000"
    pods.install("web", IMAGE, NETWORK, container(script, user="1000", runtime=f"'''{runtime}'''"))
    assert systemctl("start", "web").returncode == 0, words("web")
    pid = main_pid("web")
    status = Path(f"/proc/{pid}/status").read_text()
    assert "CapEff:\t0000000000000000\nCapBnd:" in status
    assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
    until(lambda: "REFUSED" in sh("podrun", "logs", "web").stdout, why=lambda: words("web"))
    cgroup = Path("/sys/fs/cgroup/system.slice/web.service/main")
    if "pids" in (cgroup.parent / "cgroup.controllers").read_text().split():
        assert (cgroup / "pids.max").read_text() == "2048\n"


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_unit_is_refused_a_target_that_a_link_leads_into_dev(pods: Pods, tmp_path: Path, runtime: str) -> None:
    (tmp_path / "outer").mkdir()
    (tmp_path / "inner").mkdir()
    (tmp_path / "outer/sub").symlink_to("/dev")
    volumes = f'["{tmp_path}/outer:/mnt", "{tmp_path}/inner:/mnt/sub"]'
    pods.install("web", IMAGE, container(PATIENT, volumes=volumes, runtime=f"'''{runtime}'''"))
    assert systemctl("start", "web").returncode != 0
    assert "it leads to /dev" in words("web")
    assert list((tmp_path / "inner").iterdir()) == []
