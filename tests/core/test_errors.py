"""Exit codes: what the machine lacks for a moment is nobody's mistake, and a unit may be started again."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from podrun import host_defaults
from podrun.engine import hook_loader
from podrun.errors import STEP_FAILED, WRONG_FILE, Failure
from podrun.podfile import loader
from podrun_hooks.container import spec
from podrun_hooks.container.seccomp import filter
from podrun_hooks.network import namespace
from podrun_hooks.support import trusted


@pytest.fixture
def file(home: Path) -> str:
    path = home / "web.toml"
    path.write_text('[[chain]]\nhook = "image"\nref = "host:"\n')
    return str(path)


READERS: dict[str, Callable[[str], object]] = {
    "pod file": lambda path: loader.load(path, environ={}, load_hook=hook_loader.load),
    "podrun.toml": host_defaults.read,
    "trusted file": lambda path: trusted.content(path, "/etc/podrun"),
    "environment file": spec._text,
    "seccomp profile": filter._content,
    "network namespace": namespace.opened,
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_is_not_there_is_wrong_and_one_for_which_there_is_no_descriptor_is_not(
    name: str, file: str
) -> None:
    read = READERS[name]
    hook_loader.load("image")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(Failure) as lacking:
            read(file)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert lacking.value.code == STEP_FAILED, lacking.value
    assert "Too many open files" in lacking.value.what
    with pytest.raises((Failure, FileNotFoundError)) as missing:
        assert read(f"{file}/none") != {}
    assert getattr(missing.value, "code", WRONG_FILE) == WRONG_FILE
