"""What the kernel of a booted host has and lacks: AppArmor with a profile, and no classifier for the ports of pods."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.systemd_case import IMAGE, NETWORK, PATIENT, RUN, Pods, container, sh, systemctl, until, words

pytestmark = pytest.mark.qemu

#: As docker's, with one thing denied.
PROFILE = """
abi <abi/3.0>,
profile podrun-test flags=(attach_disconnected,mediate_deleted) {
  file,
  network,
  capability,
  signal,
  ptrace,
  deny /denied/** w,
}
"""


@pytest.fixture
def profile(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "profile").write_text(PROFILE)
    done = sh("apparmor_parser", "-r", str(tmp_path / "profile"))
    assert done.returncode == 0, done.stderr
    yield "podrun-test"
    sh("apparmor_parser", "-R", str(tmp_path / "profile"))


def test_a_loaded_profile_of_apparmor_holds_in_the_foreground_and_in_a_unit(pods: Pods, profile: str) -> None:
    script = "cat /proc/self/attr/current; mkdir /denied /fine; echo x >/fine/x && echo fine; echo x >/denied/x"
    for runtime in ("crun", "runc"):
        more = {"apparmor": f'"{profile}"', "runtime": f'"{runtime}"'}
        file = pods.file("hand", IMAGE + container(script, **more))
        done = sh("podrun", "up", str(file))
        assert done.stdout == f"{profile} (enforce)\nfine\n", (runtime, done.stderr)
        assert "Permission denied" in done.stderr
        pods.install("web", IMAGE, container(f"{script}; {PATIENT}", **more))
        assert systemctl("start", "web").returncode == 0, words("web")
        until(lambda: "Permission denied" in words("web") and f"{profile} (enforce)" in words("web"))
        assert "Permission denied" in sh("podrun", "exec", "web", "sh", "-c", "echo x >/denied/y").stderr
        systemctl("stop", "web")


def test_a_profile_that_is_not_loaded_is_refused_before_anything_is_made(pods: Pods) -> None:
    file = pods.file("web", IMAGE + NETWORK + container("true", apparmor='"no-such-profile"'))
    for command in ("up", "check"):
        done = sh("podrun", command, str(file))
        assert done.returncode == 69
        assert "AppArmor has no profile no-such-profile" in done.stdout + done.stderr
    assert not (RUN / "pods/web").exists()


def test_a_kernel_without_the_ports_filter_starts_no_pod_on_a_bridge_and_says_so(pods: Pods) -> None:
    hidden = Path("/etc/modprobe.d/podrun-test.conf")
    hidden.parent.mkdir(exist_ok=True)
    hidden.write_text("install cls_bpf /bin/false\n")
    file = pods.file("web", IMAGE + NETWORK + container("true"))
    try:
        done = sh("modprobe", "-r", "cls_bpf")
        assert done.returncode == 0, done.stderr
        for command in ("up", "check"):
            done = sh("podrun", command, str(file))
            assert done.returncode == 69, done.stdout + done.stderr
            assert "the kernel cannot filter what a pod sends (sch_ingress, cls_bpf)" in done.stdout + done.stderr
        assert "no pod starts on a bridge; modprobe -a sch_ingress cls_bpf" in sh("podrun", "doctor").stdout
        assert sh("podrun", "run", "--network", "none", "host:", "true").returncode == 0
    finally:
        hidden.unlink()
    assert sh("podrun", "up", str(file)).returncode == 0
