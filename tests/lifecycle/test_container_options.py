"""Each of a container's options as the payload sees it, in the foreground and detached; units have the same table."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.launcher import Podrun
from support.option_table import ENV_FILE, ROWS, Row, pod, together, told
from support.pods import until

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def variables() -> Iterator[None]:
    path = Path("/etc/podrun-test.env")
    path.write_text(ENV_FILE)
    yield
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.line.partition(" ")[0])
def test_the_payload_sees_the_option(podrun: Podrun, nothing_left: None, row: Row) -> None:
    done = podrun("up", podrun.file("web", pod([row.line], row.script)))
    assert (done.stdout.strip(), done.returncode) == (row.printed, 0), done.stderr


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_all_of_them_together_detached(podrun: Podrun, nothing_left: None, runtime: str) -> None:
    assert shutil.which(runtime)
    lines, script, printed = together()
    path = podrun.file("web", pod([*lines, f'runtime = "{runtime}"'], f"{script}; echo over; sleep 60"))
    podrun("up", "-d", path, check=True)
    until(lambda: "over" in podrun("logs", "web").stdout)
    assert told(podrun("logs", "web").stdout) == printed
    podrun("down", "web", check=True)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("ulimits = { nofiles = 1 }", "did you mean 'nofile'"),
        ('ulimits = { nofile = "9:3" }', "expected a limit"),
        ('devices = ["/etc/passwd"]', "below /dev"),
        ('devices = ["/dev/../etc/passwd"]', "'..' is not allowed"),
        ('devices = ["/dev/fuse:/dev/fuse:x"]', "letters r, w and m"),
        ('devices = ["/dev/no-such-device"]', "the host has no /dev/no-such-device"),
        ('sysctls = { "net.core.somaxconn" = "1" }', "belongs to the network step"),
        ('sysctls = { "kernel.core_pattern" = "|/x" }', "not a sysctl of the IPC namespace"),
        ('tz = "Mars/Olympus"', "the host has no"),
        ('tz = "../../etc/passwd"', "expected a time zone"),
        ('env_files = ["/etc/no-such.env"]', "there is no such file"),
        ('unmask = ["/etc"]', "a path in /proc or /sys"),
        ('umask = "8"', "octal"),
        ("oom_score_adj = 2000", "from -1000 to 1000"),
        ('memory = "64M"\nmemory_swap = "32M"', "memory and swap together"),
        ('memory_swap = "32M"', "memory is not set"),
        ('cpuset = "3-1"', "expected processors"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_made(podrun: Podrun, line: str, what: str) -> None:
    done = podrun("check", podrun.file("web", pod([line], "true")))
    assert done.returncode in (69, 78)
    assert what in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"A B=1\n", "expected KEY=VALUE"), (b"A=\xff\n", "not UTF-8"), (b"A=" + b"x" * (1 << 20), "larger than")],
)
def test_a_file_of_variables_that_is_none_is_told(
    podrun: Podrun, nothing_left: None, content: bytes, what: str
) -> None:
    Path("/etc/podrun-test.env").write_bytes(content)
    done = podrun("up", podrun.file("web", pod(['env_files = ["/etc/podrun-test.env"]'], "true")))
    assert done.returncode == 78
    assert what in done.stderr
