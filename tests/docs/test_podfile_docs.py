"""The pod files in the documentation and in the examples are right ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from podrun.engine import hook_loader
from podrun.podfile import loader

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "pod-file.md").read_text()
BLOCKS = [block.partition("```")[0] for block in PAGE.split("```toml\n")[1:]]
PODS = [block for block in BLOCKS if "chain" in block and "before" not in block]
DROP_IN = next(block for block in BLOCKS if "before" in block)


class Everything(dict[str, str]):
    """An environment in which every variable is set."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> str:
        return "/srv/x"


VARIABLES = Everything()


@pytest.mark.parametrize("text", PODS)
def test_a_documented_pod_file_is_right(tmp_path: Path, text: Any) -> None:
    path = tmp_path / "web.toml"
    path.write_text(text)
    pod = loader.load(str(path), environ=VARIABLES, load_hook=hook_loader.load)
    assert pod.name == "web"


def test_the_documented_drop_in_fits_the_first_pod_file(tmp_path: Path) -> None:
    (tmp_path / "web.toml").write_text(PODS[0])
    (tmp_path / "web.toml.d").mkdir()
    (tmp_path / "web.toml.d" / "10-site.toml").write_text(DROP_IN)
    pod = loader.load(str(tmp_path / "web.toml"), environ=VARIABLES, load_hook=hook_loader.load)
    assert [step.name for step in pod.steps] == ["image", "network", "certificates", "app", "register"]
    assert pod.steps[0].options["ref"].endswith(":1.5")


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*/*.toml")), ids=lambda path: path.name)
def test_an_example_is_right(path: Any) -> None:
    if path.stem.endswith("@"):
        path = path.with_name(f"{path.stem}1.toml")  # an instance of the template
    assert loader.load(str(path), environ=VARIABLES, load_hook=hook_loader.load).steps
