"""podrun cluster on a host that is in no cluster: what is wrong with the words is told first, then that."""

from __future__ import annotations

from typing import Any

import pytest

from podrun.errors import UNAVAILABLE, WRONG_FILE
from support.launcher import Podrun

NOBODY = "crm_mon: Not connected; does pacemaker run on this host?"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("units", UNAVAILABLE, NOBODY),
        ("status web", UNAVAILABLE, NOBODY),
        ("journal -f web", UNAVAILABLE, NOBODY),
        ("rm web", UNAVAILABLE, NOBODY),
        ("apply nothere", WRONG_FILE, "there is no pod 'nothere'"),
        ("status ../web", WRONG_FILE, "is not the name of a pod"),
        ("rm a/b", WRONG_FILE, "is not the name of a pod"),
        ("move web -- -oProxyCommand=x", WRONG_FILE, "is not the name of a host"),
        ("stop web --timeout nan", WRONG_FILE, "is not a number of seconds"),
        ("start web --timeout inf", WRONG_FILE, "is not a number of seconds"),
    ],
)
def test_a_command_says_what_is_wrong(podrun: Podrun, words: Any, code: Any, told: Any) -> None:
    done = podrun("cluster", *words.split())
    assert (done.returncode, told in done.stderr) == (code, True), done.stderr
