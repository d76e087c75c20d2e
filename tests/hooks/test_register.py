"""The file registry: one record a file, whole or absent, and only its own invocation removes it."""

import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import NOT_ALLOWED, UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook import Pod, Step
from podrun.options import Wrong, read
from podrun_hooks import network, register
from podrun_hooks.follow import begin
from podrun_hooks.registry import connect
from podrun_hooks.registry import source as sources
from podrun_hooks.registry.http import Away
from support import registry_servers


def step_of(directory: Any, invocation: str = "1", **options: Any) -> Any:
    pod = Pod("web", f"{directory}/root", f"{directory}/run", invocation=invocation)
    return Step(pod, "register", "register", read(register.Options, {"service": "web", "port": 80, **options}))


def test_a_record_tells_where_the_service_is(tmp_path: Path) -> None:
    facts = register.up(step_of(tmp_path), {"addresses": ["10.88.0.7/16"], "ready": True})
    record = json.loads(open(facts["record"]).read())
    assert (record["v"], record["service"], record["addr"], record["port"]) == (1, "web", "10.88.0.7", 80)
    assert (record["ready"], record["gen"], record["unit"]) == (True, "1", "web")


def test_anybody_may_read_a_record(tmp_path: Path) -> None:
    facts = register.up(step_of(tmp_path), {})
    path = tmp_path / facts["record"]
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.parent.stat().st_mode & 0o777 == 0o755


def test_down_removes_the_record_and_may_be_repeated(tmp_path: Path) -> None:
    step = step_of(tmp_path)
    facts = register.up(step, {})
    register.down(step, facts)
    register.down(step, facts)
    register.down(step, {})
    assert list((tmp_path / "run/registry").iterdir()) == []


def test_a_record_goes_although_both_up_and_down_were_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = step_of(tmp_path)
    register.up(step, {})

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(register, "withdraw", killed)
        with pytest.raises(KeyboardInterrupt):
            register.down(step, {})
    register.down(step, {})
    assert list((tmp_path / "run/registry").iterdir()) == []


def test_an_earlier_start_does_not_remove_its_successors_record(tmp_path: Path) -> None:
    register.up(step_of(tmp_path, "1"), {})
    facts = register.up(step_of(tmp_path, "2"), {})
    register.down(step_of(tmp_path, "1"), facts)
    assert (tmp_path / facts["record"]).exists()


def test_clients_are_given_time_to_drain_once(tmp_path: Path) -> None:
    step = step_of(tmp_path, drain="1s")
    facts = register.up(step, {})
    began = time.monotonic()
    register.down(step, facts)
    assert time.monotonic() - began >= 1
    began = time.monotonic()
    register.down(step, facts)
    assert time.monotonic() - began < 0.9


@pytest.mark.parametrize(
    "options",
    [{"service": "../x"}, {"service": ""}, {"port": 0}, {"registry": "etcd3:"}, {"registry": "file:relative"}],
)
def test_wrong_options_are_refused(tmp_path: Path, options: Any) -> None:
    with pytest.raises(Wrong):
        step_of(tmp_path, **options)


def test_a_registry_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    assert register.check(step_of(tmp_path, registry=f"file:{tmp_path}/none"))
    assert not register.check(step_of(tmp_path, registry=f"file:{tmp_path}"))


# --- what is given out ---------------------------------------------------------------------------------------------

PUBLISHED = {"ip": "0.0.0.0", "host": 8080, "port": 80, "proto": "tcp"}
OWN = {"addresses": ["10.88.0.7/16"], "netns": "/run/netns/x"}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This host's address, as podrun.toml says it."""
    (tmp_path / "podrun.toml").write_text('[defaults]\nadvertise = "192.0.2.77"\n')
    monkeypatch.setenv("PODRUN_CONFIG", str(tmp_path / "podrun.toml"))


@pytest.mark.parametrize(
    ("options", "facts", "place"),
    [
        ({}, OWN, ("10.88.0.7", 80)),
        ({}, {**OWN, "published": [PUBLISHED]}, ("192.0.2.77", 8080)),
        ({}, {**OWN, "published": [{**PUBLISHED, "ip": "192.0.2.5"}]}, ("192.0.2.5", 8080)),
        ({}, {**OWN, "published": [{**PUBLISHED, "ip": "127.0.0.1"}]}, ("10.88.0.7", 80)),
        ({}, {**OWN, "published": [{**PUBLISHED, "port": 81}]}, ("10.88.0.7", 80)),
        ({}, {**OWN, "published": [{**PUBLISHED, "proto": "udp"}]}, ("10.88.0.7", 80)),
        ({"advertise": "pod"}, {**OWN, "published": [PUBLISHED]}, ("10.88.0.7", 80)),
        ({"advertise": "192.0.2.9"}, {**OWN, "published": [PUBLISHED]}, ("192.0.2.9", 8080)),
        ({"advertise": "192.0.2.9"}, OWN, ("192.0.2.9", 80)),
        ({}, {"netns": "host", "addresses": []}, ("192.0.2.77", 80)),
        ({"advertise": "published"}, OWN, None),
        ({"advertise": "pod"}, {"netns": "host", "addresses": []}, None),
        ({"registry": "etcd://127.0.0.1:1"}, OWN, None),
    ],
)
def test_the_address_that_is_given_out_is_one_that_others_can_call(
    tmp_path: Path, host: Any, options: Any, facts: Any, place: Any
) -> None:
    if place is None:
        with pytest.raises(Failure) as caught:
            register.up(step_of(tmp_path, **options), facts)
        assert (caught.value.code, caught.value.key) == (WRONG_FILE, "advertise")
        return
    record = json.loads(open(register.up(step_of(tmp_path, **options), facts)["record"]).read())
    assert (record["addr"], record["port"]) == place


@pytest.mark.parametrize(
    ("mode", "publish", "fine"),
    [("bridge", [], False), ("bridge", ["0.0.0.0:8080:80"], True), ("bridge", ["8080:80"], False), ("host", [], True)],
)
def test_check_refuses_what_no_other_host_could_call(tmp_path: Path, mode: str, publish: Any, fine: bool) -> None:
    step = step_of(tmp_path, registry="etcd://127.0.0.1:1")
    before = [Step(step.pod, "network", "network", read(network.Options, {"mode": mode, "publish": publish}))]
    problems = register.check_in_chain(step, before)
    assert [problem.key for problem in problems] == ([] if fine else ["port"])
    assert register.check_in_chain(step_of(tmp_path), before) == []


def test_a_singletons_record_is_the_same_wherever_it_runs(tmp_path: Path) -> None:
    facts = register.up(step_of(tmp_path, singleton=True), {})
    assert facts["record"].endswith("/web/web.register.json")


# --- registries with a server --------------------------------------------------------------------------------------


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No follower is started."""
    monkeypatch.setattr(begin, "ensure", lambda step: None)


@pytest.mark.server
@pytest.mark.parametrize("way", ["dead", "hanging"])
def test_a_registry_that_is_away_delays_a_start_and_a_stop_by_two_seconds_at_most(
    tmp_path: Path, alone: Any, way: str
) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=16)
    url = f"etcd://127.0.0.1:{listener.getsockname()[1]},127.0.0.2:{listener.getsockname()[1]}"
    if way == "dead":
        listener.close()
    words: list[str] = []
    step = step_of(tmp_path, registry=url, advertise="192.0.2.1")._replace(notify=words.append)
    for act in (lambda: register.up(step, {}), lambda: register.down(step, {})):
        began = time.monotonic()
        act()
        assert time.monotonic() - began < 2.5
        listener.close() if way == "dead" else None
    assert "is registered later" in "".join(words)
    assert "is left to the lease" in "".join(words)
    refusing = step_of(tmp_path, registry=url, advertise="192.0.2.1", when_away="fail")
    with pytest.raises(Failure, match="the registry is away") as caught:
        register.up(refusing, {})
    assert caught.value.code == UNAVAILABLE
    listener.close()


@pytest.mark.server
def test_a_record_in_a_registry_with_a_server_goes_with_the_step(tmp_path: Path, alone: Any, server: Any) -> None:
    step = step_of(tmp_path, registry=server.url, advertise="192.0.2.1", service="goes")
    facts = register.up(step, {"ready": True})
    client = connect(step.options.registry)
    # Consul's agent finds out first that the host is alive, too.
    until(lambda: [one.ready for one in client.records("goes", seconds=2)] == [True])
    register.down(step, facts)
    until(lambda: client.records("goes", seconds=2) == [])
    register.down(step, {})


def until(condition: Any, seconds: float = 5.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@pytest.mark.server
def test_users_and_tls_with_files(tmp_path: Path, alone: Any) -> None:
    run = subprocess.run
    pem = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", "key", "-out", "cert", "-days", "2", "-subj", "/O=t", "-addext", "subjectAltName=IP:127.0.0.1"]
    run([*pem, *files], cwd=tmp_path, check=True, capture_output=True)
    cert, key = str(tmp_path / "cert"), str(tmp_path / "key")
    server = registry_servers.etcd("--cert-file", cert, "--key-file", key, scheme="https", ca=cert)
    try:
        ctl = ["etcdctl", f"--endpoints={server.url.replace('etcds', 'https')}", f"--cacert={cert}"]
        environ = {**os.environ, "ETCDCTL_API": "3"}
        for words in (
            "user add root:secret", "user grant-role root root", "role add pods",
            "role grant-permission pods --prefix=true readwrite /podrun/", "user add pods:word", "user grant-role pods pods",
            "auth enable",
        ):  # fmt: skip
            run([*ctl, *words.split()], env=environ, check=True, capture_output=True)
        (tmp_path / "word").write_text("word\n")
        (tmp_path / "wrong").write_text("wrong\n")
        table = {"url": server.url, "ca": cert, "user": "pods", "password": str(tmp_path / "word")}
        facts = register.up(step_of(tmp_path, registry=table, advertise="192.0.2.1"), {"ready": True})
        client = connect(sources.parse(table))
        assert [record.addr for record in client.records("web", seconds=2)] == ["192.0.2.1"]
        assert facts["registration"]["source"]["password"] == str(tmp_path / "word")
        wrong = {**table, "password": str(tmp_path / "wrong")}
        with pytest.raises(Failure, match="etcd does not know user pods") as caught:
            register.up(step_of(tmp_path, registry=wrong, advertise="192.0.2.1"), {})
        assert caught.value.code == NOT_ALLOWED
        stranger = {"url": server.url, "user": "pods", "password": str(tmp_path / "word")}
        with pytest.raises(Away, match="TLS"):
            connect(sources.parse(stranger)).records("web", seconds=2)
    finally:
        server.close()
