"""podrun.toml: one file for what the pod file's reader completes and for what hooks read themselves."""

from __future__ import annotations

import pytest

from support.launcher import Podrun


@pytest.mark.parametrize(
    "lines",
    [
        'registry = "etcd://127.0.0.1:2379"\nadvertise = "192.0.2.1"',
        'registry = { url = "etcds://db.example", ca = "/etc/ca.pem" }',
        'registry = "file:"\nuserns = "host"\n[defaults.container]\npids = 7',
    ],
)
def test_registry_and_advertise_stand_beside_the_defaults_of_pods(podrun: Podrun, lines: str) -> None:
    config = podrun.home / "podrun.toml"
    config.write_text(f"[defaults]\n{lines}\n")
    podrun.environ["PODRUN_CONFIG"] = str(config)
    path = podrun.file("web", '[[chain]]\nhook = "image"\nref = "host:"\n')
    done = podrun("check", path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
