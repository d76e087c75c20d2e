"""What a shell completes words to: asked as bash asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from podrun.cli import completion
from podrun.cli.main import main
from podrun_hooks.image.store import layout

WORDS = [
    (["up", ""], {"web", "db"}),
    (["down", "w"], {"web"}),
    (["update", ""], {"web", "db"}),
    (["volume", "rm", "d"], {"data"}),
    (["volume", "export", ""], {"data"}),
    (["image", "rm", "ng"], {"nginx:1.27"}),
    (["run", "docker"], {"docker.io/library/nginx:1.27"}),
    (["image", "history", "n"], {"nginx:1.27"}),
    (["hook", "describe", "image"], {"image"}),
    (["images", "--so"], {"--sort"}),
    (["volume", "exp"], {"export"}),
]


@pytest.fixture
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with two pod files, the tables beside them, a volume and an image."""
    etc = tmp_path / "etc"
    for name in ("web", "db", "networks", "podrun", "registries", "cron@"):
        etc.mkdir(exist_ok=True)
        (etc / f"{name}.toml").write_text("")
    (tmp_path / "root/volumes/data/data").mkdir(parents=True)
    refs = tmp_path / "root/images/refs"
    refs.mkdir(parents=True)
    digest = f"sha256:{'0' * 64}"
    nginx = layout.Stored("docker.io/library/nginx:1.27", digest, digest, "", [], {}, [], [], 1.0, 0)
    (refs / "x").write_text(layout.write_form(nginx))
    monkeypatch.setattr(completion, "_ETC", str(etc))
    monkeypatch.setenv("PODRUN_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("PODRUN_RUN", str(tmp_path / "run"))
    return tmp_path


@pytest.mark.parametrize(("typed", "offered"), WORDS, ids=[" ".join(typed) for typed, _ in WORDS])
def test_a_word_is_completed(
    somewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    typed: list[str],
    offered: set[str],
) -> None:
    monkeypatch.setenv("_PODRUN_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(["podrun", *typed]))
    monkeypatch.setenv("COMP_CWORD", str(len(typed)))
    with pytest.raises(SystemExit):
        main([])
    found = {line.partition(",")[2] for line in capsys.readouterr().out.splitlines()}
    assert found == offered
