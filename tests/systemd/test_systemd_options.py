"""A container's options in a unit: what the payload gets in the foreground it gets here, hardening or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.option_table import ENV_FILE, ROWS, Row, marked, together, told
from support.systemd_case import IMAGE, Pods, container, ended, sh, words

pytestmark = pytest.mark.systemd


def printed_by(pods: Pods, lines: list[str], script: str) -> list[str]:
    given = dict(line.split(" = ", 1) for line in lines)
    pods.install("web", IMAGE, container(script, **given))
    sh("systemctl", "start", "web")

    assert ended("web")[0] == "success", words("web")
    return told(words("web"))


def test_all_options_of_the_table_together(pods: Pods) -> None:
    Path("/etc/podrun-test.env").write_text(ENV_FILE)
    # In this host /proc/sys is read-only, but for the network.
    lines, script, printed = together("sysctls")
    assert printed_by(pods, lines, script) == printed


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.line.startswith(("cap_drop", "pid"))], ids=lambda row: row.line
)
def test_options_that_need_a_container_of_their_own(pods: Pods, row: Row) -> None:
    assert printed_by(pods, [row.line], marked(row.script)) == [row.printed]
