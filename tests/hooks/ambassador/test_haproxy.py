"""The ambassador as the pod's own HAProxy: what it leads to, and what becomes of its process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import Failure
from podrun.hook import Step, is_resident, read
from podrun_hooks import ambassador, register
from podrun_hooks.ambassador import haproxy
from podrun_hooks.registry import wishes
from support.ambassador_case import Services
from support.network_case import inside
from support.waiting import gone, until

pytestmark = pytest.mark.root


def process(services: Services) -> int:
    pid: int = next(facts["process"]["pid"] for hook, _, facts in services.steps if hook is ambassador)
    return pid


def test_it_leads_to_a_service_and_follows_it(services: Any) -> None:
    services.backend("db1")
    address = services.client("app", via="haproxy")
    assert address == "127.0.0.1"
    assert services.call("app", address)[0] == "db1"
    services.backend("db2")
    assert {services.call("app", address)[0] for _ in range(12)} == {"db1", "db2"}
    services.undo("db1", "register")
    assert {services.call("app", address)[0] for _ in range(6)} == {"db2"}


def test_a_call_waits_for_the_first_backend_and_for_the_next(services: Any) -> None:
    address = services.client("app", via="haproxy")
    calling = services.calling("app", address)
    time.sleep(0.5)
    services.backend("db1")
    assert services.answer(calling)[0] == "db1"
    services.silence()
    calling = services.calling("app", address)
    time.sleep(0.5)
    services.backend("db2")
    services.undo("db1", "register")
    assert services.answer(calling)[0] == "db2"


def test_an_ipv6_backend_is_reached_too(services: Any) -> None:
    facts = services.pod("db1")
    six = next(one for one in facts["addresses"] if ":" in one).partition("/")[0]
    services.serve(facts["netns"], 5432, "db1", host=six)
    services.do(register, "db1", "register", {"ready": True}, service="db", port=5432, advertise=six)
    assert services.call("app", services.client("app", via="haproxy"))[0] == "db1"


def test_requests_survive_a_backend_that_dies_under_them(services: Any) -> None:
    server = """
import http.server, sys, os
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if sys.argv[1] == "dies" and self.path == "/second":
            os._exit(1)
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("0.0.0.0", 80), Handler).serve_forever()
"""
    servers = []
    for name in ("dies", "lives"):
        facts = services.pod(name)
        servers.append(subprocess.Popen([*inside(facts["netns"]), sys.executable, "-c", server, name]))
    time.sleep(0.7)
    try:
        services.do(register, "dies", "register", {"ready": True}, service="web", port=80)
        address = services.client("app", service="web", port=80, via="haproxy", mode="http")
        # On one connection: what has been kept to the backend is lost with it.
        code = f"""
import http.client
client = http.client.HTTPConnection("{address}", timeout=20)
for path in ("/first", "/second"):
    client.request("GET", path)
    print(client.getresponse().read().decode())
"""
        argv = [*inside(services.facts["app"]["netns"]), sys.executable, "-c", code]
        request = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        time.sleep(0.8)
        services.do(register, "lives", "register", {"ready": True}, service="web", port=80)
        services.undo("dies", "register")
        assert request.communicate(timeout=30)[0] == "ok\nok\n"
    finally:
        for one in servers:
            one.kill()
            one.wait()


def test_its_process_ends_with_the_step_and_leaves_nothing(services: Any) -> None:
    services.backend("db1")
    services.client("app", via="haproxy")
    pid = process(services)
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Uid:\t65534" in status
    services.undo("app", "ambassador")
    until(lambda: gone(pid))
    assert wishes.of_pod(services.run, "app") == []
    assert not [name for name in os.listdir(services.started["app"].pod.directory) if "haproxy" in name]
    assert not [name for name in os.listdir(wishes.directory(services.run)) if not name.startswith(".")
                and not name.startswith("db1")]  # fmt: skip


def test_a_start_that_was_killed_is_undone_without_its_facts(services: Any) -> None:
    services.client("app", via="haproxy")
    pid = process(services)
    hook, step, _ = services.steps.pop()
    hook.down(step, {})
    hook.down(step, {})
    until(lambda: gone(pid))


def test_a_port_that_is_taken_is_told_at_the_start(services: Any) -> None:
    services.pod("app")
    services.serve(services.facts["app"]["netns"], 5432, "other", host="127.0.0.1")
    with pytest.raises(Failure, match="HAProxy ended as soon as it was started"):
        services.client("app", via="haproxy")


def test_open_connections_go_on_while_it_drains(services: Any) -> None:
    services.backend("db1")
    services.client("app", via="haproxy", drain="5s")
    pid = process(services)
    began = time.monotonic()
    services.undo("app", "ambassador")
    assert time.monotonic() - began < 3
    until(lambda: gone(pid))


@pytest.mark.parametrize(("options", "resident"), [({"via": "haproxy"}, True), ({"via": "nft"}, False), ({}, False)])
def test_only_haproxy_leaves_a_process(options: Any, resident: bool) -> None:
    assert is_resident(ambassador, {"service": "db", "port": 1, **options}) is resident


@pytest.mark.parametrize(
    ("table", "keys"),
    [
        ({"mode": "http"}, ["mode"]),
        ({"drain": "1s"}, ["drain"]),
        ({"via": "haproxy", "proto": "udp"}, ["proto"]),
        ({"via": "haproxy", "mode": "http", "balance": "source"}, ["balance"]),
        ({"via": "haproxy", "mode": "http", "drain": "1s"}, []),
    ],
)
def test_options_that_do_not_go_together_are_told(services: Any, table: Any, keys: Any) -> None:
    pod = services.step("any").pod
    step = Step(pod, "ambassador", "ambassador", read(ambassador.Options, {"service": "db", "port": 1, **table}))
    assert [problem.key for problem in ambassador.check(step)] == keys


def test_what_it_says_of_its_servers_is_read() -> None:
    lines = [
        "1",
        "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_port",
        "2 service 1 s1 192.0.2.1 2 0 1 9",
        "2 service 2 s2 10.0.0.1 2 0 1 80",
        "2 service 3 s3 10.0.0.2 0 1 1 81",
        "",
    ]
    assert list(haproxy._slots("\n".join(lines))) == [
        ("s1", ("192.0.2.1", 9), False),
        ("s2", ("10.0.0.1", 80), True),
        ("s3", ("10.0.0.2", 81), False),
    ]


def test_it_does_not_run_when_podrun_is_killed_before_it_is_noted(
    services: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Until it runs no down could find it by its command line."""
    program, ran = tmp_path / "haproxy", tmp_path / "ran"
    program.write_text(f"#!/bin/sh\n: >{ran}\n")
    program.chmod(0o755)
    facts = services.pod("app")
    options = read(ambassador.Options, {"service": "db", "port": 5432, "via": "haproxy"})
    step = Step(services.started["app"].pod, "ambassador", "ambassador", options)
    killed = os.fork()
    if not killed:
        monkeypatch.setattr(haproxy.subprocesses, "find", lambda *_: str(program))
        monkeypatch.setattr(haproxy, "_start_time", lambda _: os.kill(os.getpid(), 9))
        ambassador.up(step, facts)
    assert os.waitpid(killed, 0)[1] == 9
    time.sleep(0.5)
    assert not ran.exists()
    ambassador.down(step, {})


def test_the_sockets_that_a_killed_one_was_about_to_bind_go_as_well(services: Any) -> None:
    services.client("app", via="haproxy")
    directory = Path(wishes.directory(services.started["app"].pod.run))
    [socket] = [path for path in directory.iterdir() if path.is_socket()]
    Path(f"{socket}.77.tmp").touch()
    services.undo("app", "ambassador")
    assert not [path for path in directory.iterdir() if path.name.startswith(socket.name)]
