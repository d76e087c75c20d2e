"""What a registry, a disk and a kill can do to a pull, and what becomes of it."""

from __future__ import annotations

import email.utils
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import CANNOT_CREATE, MALFORMED, NOT_ALLOWED, UNAVAILABLE, Failure
from podrun_hooks.image import commands
from podrun_hooks.image.registry import http
from support import image_builder as build
from support.image_samples import small_disk, visible
from support.image_servers import Request, faulty
from support.launcher import Podrun

__all__ = ["small_disk"]

pytestmark = [pytest.mark.root, pytest.mark.server]

HERE = Path(__file__).parents[2]
IMAGE = build.image(build.tar(build.file("a", os.urandom(300_000))), build.tar(build.file("b", b"b")), Cmd=["/a"])
LARGEST = max(IMAGE.blobs, key=lambda digest: len(IMAGE.blobs[digest]))
#: Processes that are killed in the middle of a pull; PODRUN_KILLS=100 is what a release is tried with.
KILLS = int(os.environ.get("PODRUN_KILLS", "6"))


def refused(root: str, change: Callable[[Request], Any]) -> Failure:
    """The failure of a pull from a registry that does this; all that is left is layers that came whole before it."""
    with faulty(IMAGE, change) as server, pytest.raises(Failure) as caught:
        commands.pull(root, f"{server.host}/web")
    assert "\n" not in str(caught.value)
    assert not {name for name in visible(Path(root)) if name.startswith(("refs/", "tmp/", "locks/"))}
    return caught.value


# --- a registry that is slow, stalls or lies


@pytest.mark.parametrize("date", [False, True])
def test_retry_after_is_waited_for(root: str, date: bool) -> None:
    asked: list[float] = []

    def change(request: Request) -> bool:
        if not request.path.endswith("latest"):
            return False
        asked.append(time.monotonic())
        if len(asked) == 1:
            after = email.utils.formatdate(time.time() + 2, usegmt=True) if date else "1"
            request.reply(429, b"", Retry_After=after)
        return len(asked) == 1

    with faulty(IMAGE, change) as server:
        assert commands.pull(root, f"{server.host}/web").digest == IMAGE.digest
    assert 0.9 < asked[1] - asked[0] < 3


def dripping(request: Request, pause: float, size: int) -> bool:
    """Sends the largest blob in small pieces."""
    if not request.path.endswith(LARGEST):
        return False
    content = IMAGE.blobs[LARGEST]
    start = int(request.headers.get("Range", "bytes=0-")[6:-1])
    request.send_response(206 if start else 200)
    request.send_header("Content-Length", str(len(content) - start))
    request.end_headers()
    for at in range(start, len(content), size):
        request.wfile.write(content[at : at + size])
        request.wfile.flush()
        time.sleep(pause)
    return True


def test_a_slow_registry_is_waited_for(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "SILENCE", 1.0)
    with faulty(IMAGE, lambda request: dripping(request, 0.1, 20_000)) as server:
        assert commands.pull(root, f"{server.host}/web").digest == IMAGE.digest


@pytest.mark.parametrize("pause", [0.05, 60])
def test_a_download_that_stalls_is_given_up_in_time(root: str, monkeypatch: pytest.MonkeyPatch, pause: float) -> None:
    monkeypatch.setattr(http, "SILENCE", 0.3)
    started = time.monotonic()
    with faulty(IMAGE, lambda request: dripping(request, pause, 10)) as server, pytest.raises(Failure) as caught:
        commands.pull(root, f"{server.host}/web")
    assert caught.value.code == UNAVAILABLE
    assert time.monotonic() - started < 20


def test_a_download_that_stalls_once_goes_on_where_it_was(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "SILENCE", 0.5)
    content = IMAGE.blobs[LARGEST]
    starts: list[str | None] = []

    def change(request: Request) -> bool:
        if not request.path.endswith(LARGEST):
            return False
        starts.append(request.headers.get("Range"))
        if len(starts) > 1:
            return False
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[:150_000])
        request.wfile.flush()
        time.sleep(1.5)
        return True

    with faulty(IMAGE, change) as server:
        assert commands.pull(root, f"{server.host}/web").digest == IMAGE.digest
    assert starts == [None, "bytes=150000-"]


def test_a_manifest_that_drips_is_given_up_in_time(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "SILENCE", 0.3)

    def change(request: Request) -> bool:
        if "/manifests/" not in request.path:
            return False
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        for _ in range(1000):
            request.wfile.write(b" ")
            request.wfile.flush()
            time.sleep(0.05)
        return True

    started = time.monotonic()
    assert refused(root, change).code == UNAVAILABLE
    assert time.monotonic() - started < 20


def test_a_download_that_is_always_cut_off_is_refused(root: str) -> None:
    def change(request: Request) -> bool:
        if request.path.endswith(LARGEST):
            start = int(request.headers.get("Range", "bytes=0-")[6:-1])
            content = IMAGE.blobs[LARGEST][start:]
            request.reply(206 if start else 200, content[:10], length=len(content))
            return True
        return False

    assert refused(root, change).code in (UNAVAILABLE, MALFORMED)


@pytest.mark.parametrize("size", [1, -1, 1000])
def test_a_blob_of_another_size_than_the_manifest_says_is_refused(root: str, size: int) -> None:
    import json

    value = json.loads(IMAGE.manifest)
    value["layers"][0]["size"] += size
    text = json.dumps(value).encode()

    def change(request: Request) -> bool:
        if "/manifests/" in request.path:
            request.reply(200, text, Content_Type="application/vnd.oci.image.manifest.v1+json")
        return "/manifests/" in request.path

    assert refused(root, change).code == MALFORMED


def test_a_redirect_loop_between_two_origins_ends(root: str) -> None:
    with faulty(IMAGE) as other:

        def there(request: Request) -> bool:
            request.reply(307, Location=f"http://{other.host}{request.path}")
            return request.path != "/v2/"

        def change(request: Request) -> bool:
            return request.path != "/v2/" and there(request)

        with faulty(IMAGE, change) as server:
            other.change = lambda request: request.reply(307, Location=f"http://{server.host}{request.path}") or True
            with pytest.raises(Failure, match="redirects more than") as caught:
                commands.pull(root, f"{server.host}/web")
    assert caught.value.code == UNAVAILABLE


@pytest.mark.parametrize("where", ["//[", "http://[::1", "http://a b/", "http://h:99999/", "http:///", "ftp://a/"])
def test_a_redirect_to_what_is_no_url_is_told(root: str, where: str) -> None:
    def change(request: Request) -> bool:
        request.reply(302, b"", Location=where)
        return True

    assert refused(root, change).code == UNAVAILABLE


@pytest.mark.parametrize("realm", ["http://[", "https://a b/", "/token", ""])
def test_a_token_service_at_what_is_no_url_is_told(root: str, realm: str) -> None:
    def change(request: Request) -> bool:
        request.reply(401, b"", WWW_Authenticate=f'Bearer realm="{realm}",service="x"')
        return True

    assert refused(root, change).code in (NOT_ALLOWED, UNAVAILABLE)


def test_a_blob_of_no_bytes_that_always_breaks_off_is_given_up(root: str) -> None:
    asked: list[str] = []
    manifest = IMAGE.manifest.replace(b'"size": %d' % len(IMAGE.config), b'"size": 0')

    def change(request: Request) -> bool:
        if "/manifests/" in request.path:
            request.reply(200, manifest, Content_Type="application/vnd.oci.image.manifest.v1+json")
        elif "/blobs/" in request.path:
            asked.append(request.path)
            request.reply(200, b"", length=10)
        return request.path != "/v2/"

    assert refused(root, change).code == UNAVAILABLE
    assert len(asked) < 10


def test_an_error_page_of_terminal_codes_is_not_shown(root: str) -> None:
    words = b'{"errors":[{"message":"\\u001b[31mred\\nline"}]}'
    failure = refused(root, lambda request: request.reply(404, words) or True)
    assert "\x1b" not in str(failure)


def test_a_registry_that_is_down_does_not_keep_a_stored_image_from_starting(podrun: Podrun) -> None:
    busybox = build.image(build.tar(build.file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)))
    with faulty(busybox) as server:
        ref = f"{server.host}/web:1"
        podrun("image", "pull", "-q", ref, check=True)
    command = ["/bin/busybox", "echo", "runs"]
    for policy in ("missing", "newer"):
        done = podrun("run", "--rm", "--name", "web", "--pull", policy, ref, *command)
        assert done.stdout == "runs\n", done.stderr
        warned = "going on with what is stored" in done.stderr
        assert warned == (policy == "newer")
    assert podrun("run", "--rm", "--name", "web", "--pull", "always", ref, *command).returncode == 69


# --- a disk that is full or read-only


def test_a_disk_that_is_full_is_told_and_left_as_it_was(small_disk: Path) -> None:
    with faulty(IMAGE) as server, pytest.raises(Failure) as caught:
        commands.pull(str(small_disk / "root"), f"{server.host}/web")
    assert caught.value.code == CANNOT_CREATE
    assert "No space left" in str(caught.value)
    assert not {name for name in visible(small_disk / "root") if name.startswith(("refs/", "tmp/", "locks/"))}


@pytest.mark.parametrize("prepared", [False, True])
def test_a_store_that_is_read_only_is_told(small_disk: Path, prepared: bool) -> None:
    tiny = build.image(build.tar(build.file("a", b"1")))
    root = str(small_disk / "root")
    with faulty(tiny) as server:
        if prepared:
            first = commands.pull(root, f"{server.host}/first")
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        with pytest.raises(Failure) as caught:
            commands.pull(root, f"{server.host}/web")
        assert caught.value.code == CANNOT_CREATE
        assert "Read-only file system" in str(caught.value)
        if prepared:
            assert commands.pull(root, f"{server.host}/first", "missing") == first


# --- processes that are killed, and many at once

PULL = """
import sys
from podrun_hooks.image import commands
print(commands.pull(sys.argv[1], sys.argv[2], "missing").digest)
"""


def pulling(root: str, ref: str) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE.parent / 'hooks'}"}
    argv = [sys.executable, "-c", PULL, root, ref]
    return subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def seconds_of_a_pull(root: str, ref: str) -> float:
    began = time.monotonic()
    assert pulling(root, ref).wait() == 0
    return time.monotonic() - began


@pytest.fixture(scope="module")
def several() -> build.Built:
    layers = [
        build.tar(*[build.file(f"l{layer}/f{number}", os.urandom(1500)) for number in range(400)]) for layer in range(4)
    ]
    return build.image(*layers)


def whole(root: str, layers: int) -> None:
    """No visible layer is a half one, and every blob is what its name says."""
    import hashlib

    for name in visible(Path(root)):
        path = Path(root, "images", name)
        if name.startswith("layers/") and not name.endswith(".json"):
            assert sum(len(files) for _, _, files in os.walk(path)) == 400, name
        if name.startswith("blobs/"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def test_a_pull_that_is_killed_at_random_moments_leaves_nothing_half(root: str, several: build.Built) -> None:
    chance = random.Random(3)
    killed = 0
    with faulty(several) as server:
        whole_pull = min(seconds_of_a_pull(f"{root}-timed{number}", f"{server.host}/web") for number in range(2))
        for number in range(KILLS):
            ref = f"{server.host}/web{number}"
            process = pulling(root, ref)
            time.sleep(chance.uniform(0.1, 0.9) * whole_pull)
            process.kill()
            process.communicate()
            killed += process.returncode == -signal.SIGKILL
            whole(root, 4)
            if number % 3 == 2:
                assert commands.pull(root, ref, "missing").digest == several.digest
                commands.prune(root, set, unused=True)
                assert visible(Path(root)) == set()
        assert commands.pull(root, f"{server.host}/web", "missing").digest == several.digest
    assert killed >= KILLS // 3
    commands.collect(root)
    assert not {name for name in visible(Path(root)) if name.startswith(("tmp/", "locks/"))}


def test_eight_processes_that_pull_the_same_image_download_every_blob_once(root: str, several: build.Built) -> None:
    with faulty(several) as server:
        running = [pulling(root, f"{server.host}/web") for _ in range(8)]
        told = [process.communicate() for process in running]
        assert {output.strip() for output, _ in told} == {several.digest}, told
        assert len(server.paths("/blobs/")) == 5
        assert len(server.paths("/manifests/")) == 1


def test_eight_processes_that_pull_images_of_the_same_layers_download_every_layer_once(
    root: str, several: build.Built
) -> None:
    with faulty(several) as server:
        running = [pulling(root, f"{server.host}/web{number}") for number in range(8)]
        told = [process.communicate() for process in running]
        assert {output.strip() for output, _ in told} == {several.digest}, told
        config = build.digest(several.config)
        assert len([path for path in server.paths("/blobs/") if not path.endswith(config)]) == 4


# --- what is told meanwhile


def test_progress_names_every_layer_and_ends_with_all_of_them_stored(root: str) -> None:
    told: list[list[Any]] = []
    with faulty(IMAGE, lambda request: dripping(request, 0.05, 50_000)) as server:
        commands.pull(root, f"{server.host}/web", progress=told.append)
    assert all(len(layers) == 2 for layers in told)
    assert any(0 < layer.done < layer.size for layers in told for layer in layers)
    assert all(layer.stored for layer in told[-1])


#: A pod without a container: it is up once its image is there.
_POD = 'chain = [ {{ hook = "image", ref = "{ref}"{more} }}, {{ hook = "network", mode = "none" }} ]'


@pytest.mark.parametrize(
    ("words", "more", "bars"),
    [
        (["image", "pull", "REF"], "", True),
        (["up", "FILE"], "", True),
        (["up", "-d", "FILE"], "", True),
        (["run", "--name", "web", "--network", "none", "REF", "/nothing"], "", True),
        # It is a process of its own, and other steps have things to say at the same time.
        (["up", "FILE"], ", background = true", False),
    ],
)
def test_a_terminal_shows_bars_and_a_pipe_shows_lines(podrun: Podrun, words: list[str], more: str, bars: bool) -> None:
    pytest.importorskip("rich")
    with faulty(IMAGE, lambda request: dripping(request, 0.02, 40_000)) as server:
        ref = f"{server.host}/web"
        file = str(podrun.file("web", _POD.format(ref=ref, more=more)))
        argv = [{"REF": ref, "FILE": file}.get(word, word) for word in words]
        lines = podrun(*argv)
        podrun("down", "web")
        assert "\x1b" not in lines.stderr
        assert f"Pulling {ref}:latest\n" in lines.stderr
        podrun("image", "rm", ref, check=True)
        status, shown = on_terminal(podrun, *argv)
        podrun("down", "web")
        assert status == lines.returncode
        assert (LARGEST[7:19] in shown, "\x1b[?25h" in shown) == (bars, bars)  # and the cursor is there again
        assert bars or f"Pulling {ref}:latest" in shown
        # Nothing is left of the pull once it has been done.
        again = on_terminal(podrun, *argv)[1]
        podrun("down", "web")
        assert words[0] == "image" or (LARGEST[7:19] not in again and "Pulling" not in again)


def on_terminal(podrun: Podrun, *words: str) -> tuple[int, str]:
    """The exit status of a command whose standard error is a terminal, and what that showed."""
    import pty

    outer, inner = pty.openpty()
    environ = {**podrun.environ, "TERM": "xterm"}
    process = subprocess.Popen(podrun.argv(*words), env=environ, stdout=subprocess.DEVNULL, stderr=inner)
    os.close(inner)
    shown = b""
    while True:
        try:
            shown += os.read(outer, 65536)
        except OSError:
            break
    os.close(outer)
    return process.wait(30), shown.decode()


def proportional(pid: int) -> int:
    """KiB of a process and its descendants, what they share counted once."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    own = next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return own + sum(proportional(int(child)) for child in children)


def test_a_pull_stays_within_its_memory_whatever_the_images_size(root: str, tmp_path: Path) -> None:
    big = build.image(*[build.Layer(build.tar(build.file(f"f{n}", bytes(60 << 20))), "zstd") for n in range(3)])
    path = build.layout(str(tmp_path / "layout"), {"v1": big})
    process = pulling(root, f"oci:{path}:v1")
    most = seen = 0
    while process.poll() is None:
        most = max(most, proportional(process.pid))
        seen += 1
    assert process.communicate()[0].strip() == big.digest
    assert seen > 5
    assert 5 << 10 < most < 128 << 10
