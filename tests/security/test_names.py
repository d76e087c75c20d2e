"""What a pod calls itself where others look it up: nobody else's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from podrun.errors import WRONG_FILE, Failure
from podrun.options import Wrong, read
from podrun_hooks import network
from support.network_case import Place

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    "name",
    ["localhost", "LOCALHOST", "localhost.localdomain", "a.localhost", "ip6-localhost", "ip6-loopback", "127.0.0.1", "1.2",
     "7"],
)  # fmt: skip
def test_no_pod_says_that_it_is_the_machine_itself_or_an_address(name: str) -> None:
    with pytest.raises(Wrong):
        read(network.Options, {"hostname": name})


def test_a_pod_that_is_named_localhost_has_to_have_another_host_name(place: Place) -> None:
    assert [problem.code for problem in place.check("localhost")] == [WRONG_FILE]
    with pytest.raises(Failure, match="cannot be called localhost"):
        place.up("localhost")
    assert len(place.check("localhost", hostname="web")) == 1, "its pod's name would be there all the same"


@pytest.mark.parametrize("name", ["db", "DB", "db.example.com"])
def test_a_host_name_is_not_another_pods(place: Place, name: str) -> None:
    place.up("db")
    [problem] = place.check("evil", hostname=name)
    assert problem.what == "the host name db is pod db's"
    with pytest.raises(Failure, match="is pod db's"):
        place.up("evil", hostname=name)


def test_a_host_name_of_ones_own_is_ones_own(place: Place) -> None:
    place.up("db")
    for name in ("web", "web.example.com", "dbx", "other"):
        assert place.up("web", hostname=name)["hostname"] == name
        place.down("web")


def test_a_name_is_taken_on_the_bridge_of_its_pod_only(place: Place) -> None:
    """Each project of several pods has a "db" on a bridge of its own."""
    etc = Path("/etc/podrun")
    file = etc / "podrun-test-db.toml"
    etc.mkdir(exist_ok=True)
    try:
        file.write_text('chain = [ { hook = "network" } ]')
        assert [problem.what for problem in place.check("web", hostname=file.stem)] == [
            f"the host name {file.stem} is pod {file.stem}'s"
        ]
        assert place.check("web", hostname=file.stem, bridge="shop") == []
        file.write_text('chain = [ { hook = "network", bridge = "shop" } ]')
        assert len(place.check("web", hostname=file.stem, bridge="shop")) == 1
    finally:
        file.unlink()
