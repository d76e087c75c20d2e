"""How ``pytest -n 2`` shares the tests out: file by file, and all that boots a host together, since a kind of host boots once."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

_BOOTED = re.compile(r"\bmark\.(systemd|qemu|hybrid)\b")


@cache
def share_of(path: str) -> str:
    """What a worker takes as one piece: the tests of a file, or those of all files with tests for a booted host."""
    return "booted hosts" if _BOOTED.search(Path(path).read_text()) else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class Shares(LoadScopeScheduling):  # type: ignore[misc]  # xdist is not annotated
        def _split_scope(self, nodeid: str) -> str:
            return share_of(str(config.rootpath / nodeid.partition("::")[0]))

    return Shares(config, log)
