"""What the page about trouble quotes is what podrun says."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from support.launcher import HERE, Podrun

PAGE = (HERE.parent / "docs" / "how-to" / "troubleshooting.md").read_text()
QUOTED = re.findall(r"^    podrun: (.*)$", PAGE, re.MULTILINE)

CRLF, BARE = "#!/bin/sh\r\necho x\r\n", "echo x\n"
POD = '[[chain]]\nhook = "image"\nref = "host:"\n[[chain]]\nhook = "network"\n{}\n[[chain]]\nhook = "container"\n{}\n'
PORT = ('publish = ["127.0.0.1:9999:80"]', 'command = ["sleep", "9"]')
#: What is done, and a part of what is said then that the page has, too.
CASES = {
    "no registry": (["run", "--rm", "registry.example/x"], "registry.example cannot be reached: Name or service not known"),
    "no command": (["run", "--rm", "host:", "servve"], "container main: 'servve' is not in the image"),
    "CRLF": (["run", "--rm", "-v", "{home}/crlf:/s.sh", "host:", "/s.sh"], "/s.sh has lines that end in CRLF, as on Windows"),
    "no #!": (["run", "--rm", "-v", "{home}/bare:/s.sh", "host:", "/s.sh"],
              "/s.sh is neither a program nor a script that begins with #!"),
    "port": (["up", "-d", "{home}/busy.toml"], "network: port 127.0.0.1:9999/tcp is in use by"),
    "not ready": (["up", "-d", "{home}/unready.toml"],
                  "container main: not ready after 1 s: 127.0.0.1:80: Connection refused; undone: container main, network, image"),
    "not heeded": (["up", "-d", "{home}/unready.toml"],
                   "it did not end within 1 s of SIGTERM: killed; as process 1 it has no handler for it: init = true passes the "
                   "signal on"),
    "variable": (["check", "{home}/variable.toml"], "the variable NOPE_X is not set; $${{ stands for a plain ${{"),
    "host path": (["run", "--rm", "-v", "/nonexistent:/x", "host:", "true"],
                  "container main: there is no /nonexistent on the host"),
    "docker's key": (["check", "{home}/wrong.toml"],
                     "unknown key 'ports'; podrun's word is publish, an option of the network step"),
    "unknown key": (["check", "{home}/wrong.toml"], "unknown key 'comand'; did you mean 'command'?"),
    "no pod": (["logs", "nosuch"], "there is no such container; 'podrun ps -a' lists the pods"),
    "no pod to exec": (["exec", "nosuch", "ls"], "there is no such container; 'podrun ps -a' lists the pods"),
}  # fmt: skip


@pytest.fixture
def home_with_files(podrun: Podrun) -> Path:
    for name, text in {
        "crlf": CRLF,
        "bare": BARE,
        "busy.toml": POD.format(*PORT),
        "unready.toml": POD.format("", 'command = ["sleep", "9"]\nready = { tcp = ":80", timeout = "1s" }'),
        "variable.toml": POD.format("", 'env = { A = "${NOPE_X}" }'),
        "wrong.toml": POD.format("", 'ports = ["80:80"]\ncomand = ["x"]'),
    }.items():
        (podrun.home / name).write_text(text)
        (podrun.home / name).chmod(0o755)
    return podrun.home


@pytest.mark.root
@pytest.mark.parametrize("case", CASES)
def test_the_page_quotes_what_is_said(podrun: Podrun, home_with_files: Path, case: str) -> None:
    words, said = CASES[case][0], CASES[case][1].format()
    with socket.create_server(("127.0.0.1", 9999)) if case == "port" else socket.socket():
        done = podrun(*(word.format(home=home_with_files) for word in words))
    assert said in done.stderr
    assert any(said in quote for quote in QUOTED), said


@pytest.mark.root
def test_a_pod_that_is_up_is_said_to_be(podrun: Podrun) -> None:
    path = podrun.file("dup", POD.format("", 'command = ["sleep", "99"]\nstop_signal = "KILL"'))
    podrun("up", "-d", path, check=True)
    said = "it is already up; 'podrun down dup' stops it"
    assert said in podrun("up", "-d", path).stderr
    assert any(said in quote for quote in QUOTED)
