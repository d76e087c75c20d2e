"""What becomes of connections when a service moves: which go on, which are forgotten, with nothing but real packets."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from podrun_hooks import register
from podrun_hooks.ambassador import flows
from support.network_case import inside
from support.waiting import until

pytestmark = pytest.mark.root


@pytest.fixture(params=[True, False], ids=["the kernel selects", "it lists only"])
def selecting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that select connections by themselves, and those before Linux 6.8."""
    if not request.param:
        monkeypatch.setattr(flows, "_FILTER", 99)  # an attribute that no kernel knows


@pytest.mark.parametrize("moved_first", [False, True], ids=["reset, then moved", "moved, then reset"])
def test_a_port_that_is_used_again_leads_to_the_new_backend(services: Any, moved_first: bool) -> None:
    """The entry of a connection that its backend has reset would lead the next one from that port to the old backend."""
    resetting = """
import socket, struct, sys
listening = socket.create_server(("0.0.0.0", 5432))
print("listening", flush=True)
connection, _ = listening.accept()
listening.close()
sys.stdin.readline()
connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
"""
    calling = """
import socket, sys
def connected():
    client = socket.socket()
    client.settimeout(5)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind(("0.0.0.0", 40123))
    client.connect((sys.argv[1], 5432))
    return client
first = connected()
print("connected", flush=True)
try:
    first.recv(1)
except ConnectionResetError:
    print("reset", flush=True)
first.close()
sys.stdin.readline()
print(connected().recv(100).decode().partition(" ")[0])
"""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    facts = services.pod("db1")
    old = subprocess.Popen([*inside(facts["netns"]), sys.executable, "-c", resetting], **pipes)
    assert old.stdout.readline() == "listening\n"
    services.do(register, "db1", "register", {"ready": True}, service="db", port=5432)
    address = services.client("app")
    client = subprocess.Popen(
        [*inside(services.facts["app"]["netns"]), sys.executable, "-c", calling, address], **pipes
    )
    assert client.stdout.readline() == "connected\n"

    def move() -> None:
        services.backend("db2")
        services.undo("db1", "register")

    def reset() -> None:
        old.communicate("\n")
        assert client.stdout.readline() == "reset\n"

    for act in (move, reset) if moved_first else (reset, move):
        act()
    assert client.communicate("\n", timeout=20)[0] == "db2\n"


def test_a_connection_stays_with_its_backend_when_the_service_moves(services: Any) -> None:
    services.backend("db1")
    address = services.client("app")
    keeping = """
import socket, sys
server = socket.create_server(("0.0.0.0", 7000))
connection, _ = server.accept()
while data := connection.recv(100):
    connection.sendall(data)
"""
    server = subprocess.Popen([*inside(services.facts["db1"]["netns"]), sys.executable, "-c", keeping])
    services.do(register, "db1", "echo", {"ready": True}, service="echo", port=7000)
    echo = services.client("app", service="echo", port=7000, step="echo")
    client = """
import socket, sys, time
for _ in range(100):
    try:
        connection = socket.create_connection((sys.argv[1], 7000), timeout=5)
        break
    except ConnectionRefusedError:
        time.sleep(0.05)
print("connected", flush=True)
for line in sys.stdin:
    connection.sendall(line.encode())
    print(connection.recv(100).decode(), end="", flush=True)
"""
    argv = [*inside(services.facts["app"]["netns"]), sys.executable, "-uc", client, echo]
    talking = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert talking.stdin
    assert talking.stdout
    try:
        assert talking.stdout.readline() == "connected\n"
        for word in ("one\n", "two\n"):
            talking.stdin.write(word)
            assert talking.stdout.readline() == word
        services.backend("db2")
        services.undo("db1", "echo")
        services.undo("db1", "register")
        talking.stdin.write("three\n")
        assert talking.stdout.readline() == "three\n"
        assert services.call("app", address)[0] == "db2"
    finally:
        for process in (talking, server):
            process.kill()
            process.wait()


def test_a_backend_that_refuses_is_tried_again_until_the_service_has_moved(services: Any, selecting: None) -> None:
    services.backend("db1")
    address = services.client("app")
    services.silence()
    calling = services.calling("app", address)
    time.sleep(0.3)
    services.backend("db2")
    services.undo("db1", "register")
    said, seconds = services.answer(calling)
    assert (said, seconds < 3.5) == ("db2", True)
    assert not any("SYN_SENT" in line for line in services.conntrack("app"))


def test_only_what_waits_for_a_lost_backend_is_forgotten(services: Any, selecting: None) -> None:
    """Two services of which one moves, each with a connection that nobody has answered, and one that is open."""
    services.backend("db1")
    services.do(register, "db1", "other", {"ready": True}, service="other", port=5432)
    services.do(register, "db1", "open", {"ready": True}, service="open", port=5433)
    calls = [services.client("app"), services.client("app", service="other", port=5432, step="other")]
    kept = services.client("app", service="open", port=5433, step="open")
    netns = services.facts["db1"]["netns"]
    keeping = 'import socket, time; s = socket.create_server(("0.0.0.0", 5433)); print(1); time.sleep(60)'
    calling = "import socket, sys, time; c = socket.create_connection((sys.argv[1], int(sys.argv[2]))); time.sleep(60)"
    started = [subprocess.Popen([*inside(netns), sys.executable, "-uc", keeping], stdout=subprocess.PIPE)]
    app = [*inside(services.facts["app"]["netns"]), sys.executable, "-c", calling]
    try:
        assert started[0].stdout
        assert started[0].stdout.readline()
        started.append(subprocess.Popen([*app, kept, "5433"]))
        until(lambda: any("ESTABLISHED" in line for line in services.conntrack("app")))
        rules = (
            "table inet silent { chain c { type filter hook input priority 0; tcp dport 5432 tcp flags syn drop; }; }"
        )
        subprocess.run([*inside(netns), "nft", "-f", "-"], input=rules, text=True, check=True)
        started += [subprocess.Popen([*app, address, "5432"]) for address in calls]
        until(lambda: sum("SYN_SENT" in line for line in services.conntrack("app")) == 2)
        services.undo("db1", "register")
        until(lambda: sum("SYN_SENT" in line for line in services.conntrack("app")) == 1)
        assert [calls[1] in line for line in services.conntrack("app") if "SYN_SENT" in line] == [True]
        assert any("ESTABLISHED" in line and kept in line for line in services.conntrack("app"))
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_only_a_known_backend_is_spared_a_refusal(services: Any) -> None:
    other = services.pod("other")["addresses"][0].partition("/")[0]
    services.client("app")
    said, seconds = services.call("app", other, 9)
    assert (said, seconds < 0.5) == ("ConnectionRefusedError", True)


def test_datagrams_follow_the_service_although_they_never_pause(services: Any, selecting: None) -> None:
    services.backend("db1", 5353, proto="udp", service="dns")
    address = services.client("app", service="dns", port=5353, proto="udp")
    code = """
import socket, sys, time
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(0.1)
client.connect((sys.argv[1], 5353))
end = time.monotonic() + 30
while time.monotonic() < end:
    try:
        client.send(b"?")
        print(client.recv(100).decode().partition(" ")[0], flush=True)
    except OSError:
        pass
    time.sleep(0.01)
"""
    argv = [*inside(services.facts["app"]["netns"]), sys.executable, "-c", code, address]
    talking = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert talking.stdout
    try:
        assert talking.stdout.readline() == "db1\n"
        services.backend("db2", 5353, proto="udp", service="dns")
        services.undo("db1", "register")
        lines = iter(talking.stdout.readline, "")
        assert next(n for n, line in enumerate(lines) if line == "db2\n") < 200
    finally:
        talking.kill()
        talking.wait()
