"""./dev prove hundred: a hundred pods that systemd starts in one transaction, as it does at boot."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from support.systemd_case import ETC, IMAGE, NETWORK, Pods, container, show, systemctl, until, words

pytestmark = [pytest.mark.systemd, pytest.mark.prove]

_PODS = 100


def test_a_hundred_pods_of_a_target_are_all_up_and_all_gone_again(pods: Pods) -> None:
    Path("/etc/systemd/system/hundred.target").write_text("[Unit]\nDescription=A hundred pods\n")
    names = [f"h{n}" for n in range(_PODS)]
    pods.install(names[0], IMAGE, NETWORK, container("exec sleep 100000"), stop_timeout="0s")
    text, unit = (ETC / f"{names[0]}.toml").read_text(), Path(f"/etc/systemd/system/{names[0]}.service").read_text()
    wants = Path("/etc/systemd/system/hundred.target.wants")
    wants.mkdir(exist_ok=True)
    for name in names:
        pods.file(name, text)
        path = Path(f"/etc/systemd/system/{name}.service")
        path.write_text(unit.replace(names[0], name))
        (wants / path.name).symlink_to(path)
        pods.files += [path, wants / path.name]
        pods.units.append(path.name)
    systemctl("daemon-reload")
    began = time.monotonic()
    assert systemctl("start", "hundred.target").returncode == 0
    # A target is reached when its units' jobs are done (Wants= and After= by default dependencies).
    until(lambda: all(show(name, "ActiveState") == ["active"] for name in names), 120, lambda: words(names[-1]))
    took = time.monotonic() - began
    failed = [name for name in names if show(name, "NRestarts") != ["0"]]
    began = time.monotonic()
    assert systemctl("stop", *names).returncode == 0
    print(
        f"\n{_PODS} pods: all up after {took:.1f} s, all gone after {time.monotonic() - began:.1f} s; started twice: {failed}"
    )
    Path("/etc/systemd/system/hundred.target").unlink()
    assert not failed
