"""What is kept because somebody needs it: data of pods that are down, and other people's units."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from podrun.cli import images, in_use, volumes
from podrun.errors import NOT_ALLOWED, Failure
from podrun.systemd import install, units
from support import image_builder as build
from support.launcher import Podrun

pytestmark = pytest.mark.root


def pod_file(path: Path, source: str, image: str = "host:") -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(
        f'[[chain]]\nhook = "image"\nref = "{image}"\n[[chain]]\nhook = "storage"\nsource = "{source}"\ntarget = "/d"\n'
        '[[chain]]\nhook = "container"\ncommand = ["true"]\n'
    )
    path.chmod(0o644)


@pytest.fixture
def etc(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """/etc/podrun of the test's own, beside which ``units`` holds units."""
    (home / "etc").mkdir()
    (home / "units").mkdir()
    monkeypatch.setattr(units, "ETC", str(home / "etc"))
    monkeypatch.setattr(in_use, "_UNITS", (str(home / "units"),))
    return home / "etc"


def command(group: Any, podrun: Podrun, *words: str) -> Any:
    given = {"root": str(podrun.root), "run": str(podrun.run), "debug": False}
    return CliRunner().invoke(group, list(words), obj=given)


def prune(group: Any, podrun: Podrun, *words: str) -> Any:
    return command(group, podrun, "prune", *words)


def store(podrun: Podrun, *names: str) -> None:
    for name in names:
        (podrun.root / "volumes" / name / "data").mkdir(parents=True, exist_ok=True)


def test_the_volume_of_a_pod_that_is_down_is_used(podrun: Podrun, etc: Path) -> None:
    store(podrun, "file", "dropin", "unit", "template-blue", "vary-7", "nobodys")
    pod_file(etc / "db.toml", "volume:file")
    pod_file(etc / "many@.toml", "volume:template-%i")
    pod_file(etc / "vary.toml", "volume:vary-${N}")
    pod_file(etc / "web.toml", "tmpfs:")
    pod_file(etc.parent / "elsewhere/web.toml", "volume:unit")
    more = etc / "web.toml.d/more.toml"
    more.parent.mkdir(mode=0o755)
    more.write_text(
        '[[chain]]\nhook = "storage"\nname = "more"\nsource = "volume:dropin"\ntarget = "/e"\nbefore = "main"\n'
    )
    more.chmod(0o644)
    (etc.parent / "units/web.service").write_text(
        f"# Made by podrun of {etc.parent}/elsewhere/web.toml; 'podrun unit' shows it.\n"
    )
    assert "removed" not in prune(volumes.group, podrun).output
    assert prune(volumes.group, podrun, "--all", "--dry-run").output == "would remove volume nobodys\n"
    refused = prune(volumes.group, podrun, "--all")
    assert refused.exit_code == 78
    assert sorted(os.listdir(podrun.root / "volumes")) == sorted(
        ["file", "dropin", "unit", "template-blue", "vary-7", "nobodys"]
    )
    for name in ("file", "dropin", "unit", "template-blue", "vary-7"):
        refused = command(volumes.group, podrun, "rm", name, "nobodys")
        assert refused.exit_code == 75, (name, refused.output)
    assert prune(volumes.group, podrun, "--all", "--force").output == "removed nobodys\n"
    assert command(volumes.group, podrun, "rm", "--force", "file").output == "removed file\n"
    assert "nobodys" not in os.listdir(podrun.root / "volumes")


def test_a_pod_file_that_cannot_be_read_keeps_everything_unless_forced(podrun: Podrun, etc: Path) -> None:
    store(podrun, "data")
    (etc / "broken.toml").write_text("[[chain")
    refused = prune(volumes.group, podrun, "--all", "--dry-run")
    assert refused.exit_code == 75
    assert prune(volumes.group, podrun, "--all", "--force").output == "removed data\n"


@pytest.mark.parametrize("spelled", ["LAYOUT:web", "LAYOUT:${TAG}"])
def test_the_image_of_a_pod_that_is_down_is_used(podrun: Podrun, etc: Path, spelled: str) -> None:
    layout = build.layout(
        str(podrun.home / "layout"), {name: build.image(build.tar(build.file(name))) for name in ("web", "other")}
    )
    for name in ("web", "other"):
        podrun("image", "pull", f"oci:{layout}:{name}", check=True)
    pod_file(etc / "web.toml", "tmpfs:", spelled.replace("LAYOUT", f"oci:{layout}"))
    kept = {"web", "other"} if "$" in spelled else {"web"}
    assert prune(images.image, podrun, "-a", "--force").exit_code == 0
    rows = [json.loads(line) for line in podrun("image", "ls", "--format", "json").stdout.splitlines()]
    assert {row["ref"].rpartition(":")[2] for row in rows} == kept


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Unit paths of the test's own: the first is where podrun installs."""
    for name in ("etc", "usr", "run"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(units, "INSTALLED", str(tmp_path / "etc"))
    monkeypatch.setattr(install, "UNIT_PATHS", tuple(str(tmp_path / name) for name in ("etc", "usr", "run")))
    return tmp_path


@pytest.mark.parametrize(
    "make",
    [
        lambda paths: (paths / "usr/nginx.service").write_text("[Service]\n"),
        lambda paths: (paths / "etc/nginx.service").write_text("[Service]\n# not: # Made by podrun of me\n"),
        lambda paths: (paths / "etc/nginx.service").symlink_to("/dev/null"),
        lambda paths: (paths / "usr/nginx.service").symlink_to("nowhere"),
        lambda paths: (paths / "run/nginx.service").symlink_to(paths / "usr/www.service"),
    ],
    ids=["the distribution's", "one that mentions podrun", "masked", "a link to nowhere", "an alias"],
)
def test_no_pod_takes_the_place_of_a_unit_that_is_not_its_own(paths: Path, make: Any) -> None:
    make(paths)
    with pytest.raises(Failure, match=r"nginx\.service would take the place of") as caught:
        install.install({"aaa.service": "# Made by podrun of /x; ...\n", "nginx.service": "# Made by podrun of /x\n"})
    assert caught.value.code == NOT_ALLOWED
    assert not (paths / "etc/aaa.service").exists(), "nothing is written before all are looked at"


def test_a_unit_that_podrun_made_is_written_anew(paths: Path) -> None:
    for place in ("etc", "run"):
        (paths / place / "web.service").write_text(
            "# Made by podrun of /etc/podrun/web.toml; 'podrun unit' shows it.\n"
        )
    assert install.theirs("web.service") == ""


def test_the_units_of_this_distribution_are_theirs() -> None:
    name = next(name for name in sorted(os.listdir("/usr/lib/systemd/system")) if name.endswith(".service"))
    assert install.theirs(name)
