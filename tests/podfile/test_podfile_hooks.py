"""Wrong options of the first-party hooks, as a pod file's author meets them: code 78, the line, one line of text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from podrun.engine import hook_loader
from podrun.errors import WRONG_FILE, Failure
from podrun.podfile import loader
from podrun.podfile.loader import PodText
from support.podfile_fakes import load_hook


@pytest.mark.parametrize(
    ("hook", "key"),
    [
        ("container", "user = '4294967296'"),
        ("container", "user = '1:4294967296'"),
        ("container", "memory = 'much'"),
        ("container", "workdir = 'relative'"),
        ("container", "ready = { tcp = ':0' }"),
        ("container", "ready = { tcp = ':70000' }"),
        ("container", "ready = { }"),
        ("container", "ready = { tpc = ':80' }"),
        ("container", "ready.timeout = 'soon'"),
        ("container", "env = { 'A=B' = '1' }"),
        ("container", "cap_add = ['SYS_ADMN']"),
        ("container", "comand = []"),
        ("network", "mode = 'bridg'"),
        ("network", "publish = ['0:80']"),
        ("network", "publish = ['70000:80']"),
        ("network", "publish = [80]"),
        ("network", "publsh = []"),
        ("storage", "target = 'data'"),
        ("storage", "target = '/a/../b'"),
        ("image", "pull = 'often'\nref = 'x'"),
        ("image", "rfe = 'x'"),
        ("register", "port = 0\nservice = 'web'"),
        ("register", "port = 70000\nservice = 'web'"),
        ("register", "service = 'a/b'\nport = 80"),
        ("../image", ""),
    ],
)
def test_a_wrong_option_is_told_with_its_line(tmp_path: Path, hook: str, key: str) -> None:
    path = tmp_path / "web.toml"
    path.write_text(f"[[chain]]\nhook = '{hook}'\n\n{key}\n")
    with pytest.raises(Failure) as caught:
        loader.load(str(path), environ={}, load_hook=hook_loader.load)
    line = 4 if key else 2
    assert caught.value.code == WRONG_FILE
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert "\n" not in str(caught.value)


PIECES = [
    "[pod]",
    "[[chain]]",
    "[chain.ready]",
    "[service]",
    "\n",
    "\n",
    "hook = ",
    "name = ",
    "for = ",
    "port = ",
    "a.b = ",
]
PIECES += [
    "'container'",
    "'network'",
    "'exec:/x'",
    '"main"',
    "'${X}'",
    "'%i'",
    "5",
    "-1",
    "inf",
    "true",
    "[",
    "]",
    "{",
    "}",
]
PIECES += [",", "#", '"""', "'''", "\\", "\0", "\r\n", "é", "1979-05-27", "command = [ 'x' ]", "env = { A = '1' }"]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=24).map("".join))
def test_any_text_is_a_pod_or_a_failure_in_one_line(tmp_path_factory: pytest.TempPathFactory, text: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "web.toml"
    path.write_text(text, newline="")
    try:
        pod = loader.load(str(path), environ={}, load_hook=load_hook)
    except Failure as failure:
        assert failure.code == WRONG_FILE
        assert str(failure).isprintable()
        assert str(failure).startswith(f"{path}:")
    else:
        assert isinstance(pod, PodText)


@pytest.mark.parametrize(
    ("chain", "what"),
    [
        ('[{ hook = "container", command = ["true"] }]', "no step above it gives images"),
        (
            '[{ hook = "image", ref = "host:", name = "web" }, { hook = "container", command = ["true"], image = "wib" }]',
            "did you mean 'web'",
        ),
        (
            '[{ hook = "container", command = ["true"] }, { hook = "image", ref = "host:" }]',
            "no step above it gives images",
        ),
    ],
)
def test_a_container_needs_an_image_step_above_it(tmp_path: Path, chain: str, what: str) -> None:
    path = tmp_path / "web.toml"
    path.write_text(f"chain = {chain}\n")
    path.chmod(0o644)
    with pytest.raises(Failure, match=what):
        loader.load(str(path), environ={}, load_hook=hook_loader.load)
