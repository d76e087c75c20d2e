"""Pulling from registries: a real one, and one that does everything wrong."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import MALFORMED, NOT_ALLOWED, UNAVAILABLE, Failure
from podrun_hooks.image import commands, reference
from podrun_hooks.image.registry import client, credentials
from podrun_hooks.image.registry import source as registry
from support import image_builder as build
from support.image_servers import Registry, Request, docker_registry, faulty, free_port

pytestmark = [pytest.mark.root, pytest.mark.server]

HERE = Path(__file__).parents[2]
IMAGE = build.image(
    build.tar(build.file("a", os.urandom(400_000))),
    build.tar(build.file("b", os.urandom(1000))),
    Cmd=["/a"],
)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


def leftovers(root: str) -> list[str]:
    return [name for where in ("tmp", "locks", "refs", "layers") for name in os.listdir(f"{root}/images/{where}")]


# --- a real registry


def test_an_image_comes_out_as_it_was_pushed(tmp_path: Path, root: str, real: Registry) -> None:
    path = build.layout(str(tmp_path / "layout"), {"v1": IMAGE})
    ref = real.push(f"oci:{path}:v1", "team/web:1.4")
    found = commands.pull(root, ref)
    assert (found.digest, found.config) == (IMAGE.digest, {"Cmd": ["/a"]})
    assert found.layers == commands.pull(root, f"oci:{path}").layers
    assert commands.pull(root, f"{real.host}/team/web@{IMAGE.digest}").digest == IMAGE.digest
    assert commands.pull(root, f"{real.host}/team/web:1.4@{IMAGE.digest}").digest == IMAGE.digest


def test_docker_media_types_are_understood(tmp_path: Path, root: str, real: Registry) -> None:
    path = build.layout(str(tmp_path / "layout"), {"v1": IMAGE})
    target = f"docker://{real.host}/team/docker:1"
    argv = ["skopeo", "copy", "--dest-tls-verify=false", "--format=v2s2", f"oci:{path}:v1", target]
    subprocess.run(argv, check=True, capture_output=True)
    found = commands.pull(root, f"{real.host}/team/docker:1")
    assert found.layers == commands.pull(root, f"oci:{path}").layers
    copy = ["skopeo", "copy", f"oci:{root}/images:{real.host}/team/docker:1", f"oci:{tmp_path}/copy:x"]
    subprocess.run(copy, check=True, capture_output=True)


def test_zstd_layers_are_understood(tmp_path: Path, root: str, real: Registry) -> None:
    built = build.image(build.Layer(build.tar(build.file("z", b"z" * 100_000)), "zstd"))
    path = build.layout(str(tmp_path / "layout"), {"v1": built})
    found = commands.pull(root, real.push(f"oci:{path}:v1", "team/zstd:1"))
    assert os.listdir(found.layers[0]) == ["z"]


def test_the_platform_is_chosen_at_the_registry(tmp_path: Path, root: str, real: Registry) -> None:
    built = {
        "linux/amd64": build.image(build.tar(build.file("amd64"))),
        "linux/arm64/v8": build.image(build.tar(build.file("arm64")), architecture="arm64"),
    }
    index = build.multi_platform(str(tmp_path / "layout"), "v1", built)
    ref = real.push(f"oci:{tmp_path}/layout:v1", "team/multi:1", "--all")
    for platform, one in built.items():
        assert commands.pull(root, ref, platform=platform).digest == one.digest
    assert commands.pull(root, f"{real.host}/team/multi@{index}", platform="linux/arm64").digest.startswith("sha256:")


def test_many_processes_download_every_blob_once(tmp_path: Path, root: str, real: Registry) -> None:
    layers = [build.tar(build.file(f"f{number}", os.urandom(200_000))) for number in range(5)]
    path = build.layout(str(tmp_path / "layout"), {"v1": build.image(*layers)})
    ref = real.push(f"oci:{path}:v1", "team/once:1")
    program = (
        "import sys; from podrun_hooks.image import commands\n"
        "print(commands.pull(sys.argv[1], sys.argv[2], 'missing').digest)"
    )
    environ = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE.parent / 'hooks'}"}
    argv = [sys.executable, "-c", program, root, ref]
    running = [subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({process.communicate()[0] for process in running}) == 1
    assert [process.returncode for process in running] == [0] * 4
    assert len(real.requests("team/once/blobs/")) == 6
    assert len(real.requests("team/once/manifests/")) == 1


def test_only_the_layer_that_changed_is_downloaded(tmp_path: Path, root: str, real: Registry) -> None:
    layers = [build.tar(build.file(f"f{number}", os.urandom(1000))) for number in range(4)]
    path = build.layout(str(tmp_path / "layout"), {"v1": build.image(*layers)})
    ref = real.push(f"oci:{path}:v1", "team/change:1")
    commands.pull(root, ref)
    before = len(real.requests("team/change/blobs/"))
    build.layout(path, {"v1": build.image(*layers[:3], build.tar(build.file("new")))})
    real.push(f"oci:{path}:v1", "team/change:1")
    assert os.listdir(commands.pull(root, ref).layers[3]) == ["new"]
    assert len(real.requests("team/change/blobs/")) == before + 2


def test_what_has_not_changed_costs_one_question(tmp_path: Path, root: str, real: Registry) -> None:
    path = build.layout(str(tmp_path / "layout"), {"v1": IMAGE})
    ref = real.push(f"oci:{path}:v1", "team/noop:1")
    first = commands.pull(root, ref)
    before = real.requests("team/noop/")
    for policy in ("always", "newer"):
        assert commands.pull(root, ref, policy) == first
    assert real.requests("team/noop/") == before


def test_an_image_or_a_tag_that_is_not_there_is_unavailable(tmp_path: Path, root: str, real: Registry) -> None:
    for name in ("nothing/such:1", "nothing/such@sha256:" + "0" * 64):
        with pytest.raises(Failure, match="does not have it") as caught:
            commands.pull(root, f"{real.host}/{name}")
        assert caught.value.code == UNAVAILABLE
    assert leftovers(root) == []


# --- a registry that misbehaves


def test_a_registry_that_nobody_runs_is_unavailable_at_once(root: str) -> None:
    started = time.monotonic()
    with pytest.raises(Failure, match="cannot be reached") as caught:
        commands.pull(root, f"127.0.0.1:{free_port()}/web")
    assert caught.value.code == UNAVAILABLE
    assert "object at" not in str(caught.value)
    assert time.monotonic() - started < 20


def test_newer_goes_on_with_what_is_stored_when_nobody_answers(root: str) -> None:
    with faulty(IMAGE) as server:
        ref = f"{server.host}/web:1"
        found = commands.pull(root, ref)
    assert commands.pull(root, ref, "newer") == found
    with pytest.raises(Failure) as caught:
        commands.pull(root, ref, "always")
    assert caught.value.code == UNAVAILABLE
    assert commands.pull(root, ref, "missing") == found


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, NOT_ALLOWED), (403, NOT_ALLOWED), (404, UNAVAILABLE), (400, UNAVAILABLE), (418, UNAVAILABLE)],
)
@pytest.mark.parametrize("where", ["/manifests/", "/blobs/"])
def test_a_refusal_has_the_code_that_fits(root: str, status: int, code: int, where: str) -> None:
    def change(request: Request) -> bool:
        if where in request.path:
            request.reply(status, b'{"errors":[{"code":"X","message":"because"}]}')
        return where in request.path

    with faulty(IMAGE, change) as server, pytest.raises(Failure) as caught:
        commands.pull(root, f"{server.host}/web")
    assert caught.value.code == code
    assert leftovers(root) == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_trouble_is_waited_out(root: str, status: int) -> None:
    troubles = [1, 1]

    def change(request: Request) -> bool:
        if request.path.endswith("latest") and troubles:
            troubles.pop()
            request.reply(status, b"", Retry_After="0")
            return True
        return False

    with faulty(IMAGE, change) as server:
        assert commands.pull(root, f"{server.host}/web").digest == IMAGE.digest
        assert len(server.paths("latest")) == 3


@pytest.mark.parametrize("headers", [{}, {"Retry_After": "100000"}, {"Retry_After": "soon"}])
def test_a_registry_that_stays_in_trouble_is_unavailable(root: str, headers: dict[str, str]) -> None:
    def change(request: Request) -> bool:
        request.reply(503, b"<html>", **headers)
        return True

    with faulty(IMAGE, change) as server, pytest.raises(Failure) as caught:
        commands.pull(root, f"{server.host}/web")
    assert caught.value.code == UNAVAILABLE


def test_a_download_that_breaks_goes_on_where_it_ended(root: str) -> None:
    largest = max(IMAGE.blobs, key=lambda digest: len(IMAGE.blobs[digest]))
    content = IMAGE.blobs[largest]

    def change(request: Request) -> bool:
        start = int(request.headers.get("Range", "bytes=0-")[6:-1])
        if request.path.endswith(largest) and start < 300_000:
            request.reply(206 if start else 200, content[start : start + 100_000], length=len(content) - start)
            return True
        return False

    with faulty(IMAGE, change) as server:
        assert commands.pull(root, f"{server.host}/web").digest == IMAGE.digest
        ranges = [headers.get("Range") for _, path, headers in server.seen if path.endswith(largest)]
    assert ranges == [None, "bytes=100000-", "bytes=200000-", "bytes=300000-"]


def test_a_server_without_ranges_is_read_again_from_the_start(root: str) -> None:
    largest = max(IMAGE.blobs, key=lambda digest: len(IMAGE.blobs[digest]))
    content = IMAGE.blobs[largest]
    times = []

    def change(request: Request) -> bool:
        if request.path.endswith(largest):
            times.append(1)
            request.reply(200, content[: 150_000 * len(times)], length=len(content))
            return True
        return False

    with faulty(IMAGE, change) as server:
        assert commands.pull(root, f"{server.host}/web").digest == IMAGE.digest


def _other(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


LIES = {
    "another layer": lambda path, content: _other(content) if "/blobs/" in path else None,
    "a longer blob": lambda path, content: content + b"x" if "/blobs/" in path else None,
    "a shorter blob": lambda path, content: content[:-1] if "/blobs/" in path else None,
    "an empty blob": lambda path, content: b"" if "/blobs/" in path else None,
    "garbage as a manifest": lambda path, content: b"<html>" if "/manifests/" in path else None,
    "nothing as a manifest": lambda path, content: b"" if "/manifests/" in path else None,
    "a list as a manifest": lambda path, content: b"[]" if "/manifests/" in path else None,
    "an enormous manifest": lambda path, content: b" " * (9 << 20) if "/manifests/" in path else None,
}


@pytest.mark.parametrize("lie", LIES)
def test_what_is_not_what_its_digest_says_is_malformed(root: str, lie: str) -> None:
    def change(request: Request) -> bool:
        content = IMAGE.blobs.get(request.path.rpartition("/")[2], IMAGE.manifest)
        start = int(request.headers.get("Range", "bytes=0-")[6:-1])
        told = None if request.path == "/v2/" else LIES[lie](request.path, content)  # type: ignore[no-untyped-call]
        if told is not None:
            request.reply(206 if start else 200, told[start:])
        return told is not None

    with faulty(IMAGE, change) as server, pytest.raises(Failure) as caught:
        commands.pull(root, f"{server.host}/web")
    assert caught.value.code == MALFORMED, caught.value
    assert leftovers(root) == []


def test_a_pinned_digest_is_what_counts(root: str) -> None:
    def change(request: Request) -> bool:
        if "/manifests/" in request.path:
            request.reply(200, IMAGE.manifest, Docker_Content_Digest="sha256:" + "0" * 64)
        return "/manifests/" in request.path

    with faulty(IMAGE, change) as server:
        for name in ("web@sha256:" + "0" * 64, "web:1"):
            with pytest.raises(Failure) as caught:
                commands.pull(root, f"{server.host}/{name}")
            assert caught.value.code == MALFORMED


# --- who we are


def token_registry(request: Request, token: str = "secret-token", **checks: str) -> bool:
    """Asks for a bearer token and gives one out."""
    if request.path.startswith("/token"):
        request.reply(200, json.dumps({"token": token}).encode())
        return True
    if request.path != "/v2/" and request.headers.get("Authorization") != f"Bearer {token}":
        challenge = f'Bearer realm="http://{request.headers["Host"]}/token",service="reg",scope="repository:web:pull"'
        request.reply(401, b"{}", WWW_Authenticate=challenge)
        return True
    return False


def test_an_anonymous_token_is_fetched_when_the_registry_asks_for_one(root: str) -> None:
    with faulty(IMAGE, token_registry) as server:
        assert commands.pull(root, f"{server.host}/web").digest == IMAGE.digest
        tokens = server.paths("/token")
    assert tokens == ["/token?service=reg&scope=repository%3Aweb%3Apull"]


@pytest.mark.parametrize("answer", [b"{}", b"[]", b'{"token": 5}', b'{"token": "a\\nb"}', b"<html>"])
def test_a_token_service_that_gives_none_is_an_error(root: str, answer: bytes) -> None:
    def change(request: Request) -> bool:
        if request.path.startswith("/token"):
            request.reply(200, answer)
            return True
        return token_registry(request)

    with faulty(IMAGE, change) as server, pytest.raises(Failure) as caught:
        commands.pull(root, f"{server.host}/web")
    assert caught.value.code in (NOT_ALLOWED, MALFORMED)


@pytest.mark.parametrize(
    "challenge",
    [
        "",
        "Basic realm=x",
        "Bearer",
        'Bearer realm="http://registry.example/token"',
        'Bearer realm="file:///etc/passwd"',
        "Digest x=y",
    ],
)
def test_a_challenge_that_cannot_be_met_is_not_allowed(root: str, challenge: str) -> None:
    def change(request: Request) -> bool:
        if request.path != "/v2/":
            request.reply(401, b"{}", WWW_Authenticate=challenge)
        return request.path != "/v2/"

    with faulty(IMAGE, change) as server, pytest.raises(Failure) as caught:
        commands.pull(root, f"{server.host}/web")
    assert caught.value.code == NOT_ALLOWED


def test_credentials_are_asked_for_where_the_registry_wants_them(root: str) -> None:
    expected = "Basic " + base64.b64encode(b"me:pass").decode()

    def change(request: Request) -> bool:
        if request.path != "/v2/" and request.headers.get("Authorization") != expected:
            request.reply(401, b"{}", WWW_Authenticate='Basic realm="x"')
            return True
        return False

    with faulty(IMAGE, change) as server:
        source = registry.source(
            reference.parse(f"{server.host}/web"), ask=lambda host: credentials.Credentials("me", "pass")
        )
        assert source is not None
        assert source.remote == IMAGE.digest


def test_what_authorizes_us_does_not_follow_a_redirect_to_another_origin(root: str) -> None:
    with faulty(IMAGE) as store:

        def change(request: Request) -> bool:
            if token_registry(request):
                return True
            if "/blobs/" in request.path:
                request.reply(307, Location=f"http://{store.host}{request.path}")
                return True
            return False

        with faulty(IMAGE, change) as server:
            assert commands.pull(root, f"{server.host}/web").digest == IMAGE.digest
            own = [headers.get("Authorization") for _, path, headers in server.seen if "/blobs/" in path]
        assert own == ["Bearer secret-token"] * 3
        assert [headers.get("Authorization") for _, _, headers in store.seen] == [None] * 3


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/v2/web/manifests/latest"])
def test_redirects_that_lead_nowhere_are_an_error(root: str, location: str) -> None:
    def change(request: Request) -> bool:
        if "/manifests/" in request.path:
            request.reply(302, Location=location)
        return "/manifests/" in request.path

    with faulty(IMAGE, change) as server, pytest.raises(Failure) as caught:
        commands.pull(root, f"{server.host}/web")
    assert caught.value.code == UNAVAILABLE


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True), ("localhost:5000", True), ("127.0.0.1:5000", True), ("127.9.9.9", True), ("[::1]:5000", True),
        ("registry.example", False), ("10.0.0.1:5000", False), ("localhost.example", False), ("127.0.0.1.example", False),
        ("[::2]", False), ("0.0.0.0:80", False),
    ],
)  # fmt: skip
def test_only_this_machine_is_spoken_to_without_tls(host: str, loopback: bool) -> None:
    assert client.is_loopback(host) == loopback


def test_progress_is_told_while_bytes_move(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = max(IMAGE.blobs, key=lambda digest: len(IMAGE.blobs[digest]))

    def change(request: Request) -> bool:
        if request.path.endswith(largest):
            content = IMAGE.blobs[largest]
            request.send_response(200)
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            for at in range(0, len(content), 100_000):
                request.wfile.write(content[at : at + 100_000])
                request.wfile.flush()
                time.sleep(0.3)
            return True
        return False

    told: list[str] = []
    with faulty(IMAGE, change) as server:
        commands.pull(root, f"{server.host}/web", notify=told.append)
    assert any("EXTEND_TIMEOUT_USEC=60000000" in text and "MiB" in text for text in told)


def test_an_interrupt_stops_the_download(root: str) -> None:
    def change(request: Request) -> bool:
        if "/blobs/" in request.path:
            request.send_response(200)
            request.send_header("Content-Length", "400000")
            request.end_headers()
            for _ in range(200):
                request.wfile.write(b"x")
                time.sleep(0.05)
            return True
        return False

    class Interrupted(BaseException):
        pass

    def notify(text: str) -> None:
        if "layers" in text:
            import signal

            def stop(*_: Any) -> None:
                raise Interrupted

            signal.signal(signal.SIGALRM, stop)
            signal.setitimer(signal.ITIMER_REAL, 0.3)

    started = time.monotonic()
    with faulty(IMAGE, lambda request: change(request) if "config" not in request.path else None) as server:
        config = json.loads(IMAGE.manifest)["config"]["digest"]
        server.change = lambda request: False if request.path.endswith(config) else change(request)
        with pytest.raises(Interrupted):
            commands.pull(root, f"{server.host}/web", notify=notify)
    assert time.monotonic() - started < 20
    assert not os.listdir(f"{root}/images/refs")
