"""What ``podrun image pull`` says and returns for each fault of a registry or disk: pytest -s prints the table."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import image_builder as build
from support.image_samples import small_disk, visible
from support.image_servers import Request, faulty

__all__ = ["small_disk"]

pytestmark = [pytest.mark.root, pytest.mark.server]

IMAGE = build.image(build.tar(build.file("a", os.urandom(300_000))), build.tar(build.file("b", b"b")), Cmd=["/a"])
LARGEST = max(IMAGE.blobs, key=lambda digest: len(IMAGE.blobs[digest]))
Change = Callable[[Request], Any]


def status(number: int, **headers: str) -> Change:
    def change(request: Request) -> bool:
        request.reply(number, b"{}", **headers)
        return True

    return change


def blob(answer: Callable[[Request, bytes], Any]) -> Change:
    """Answers for the largest layer; ``bytes`` is its content."""

    def change(request: Request) -> bool:
        if not request.path.endswith(LARGEST):
            return False
        answer(request, IMAGE.blobs[LARGEST])
        return True

    return change


def once(number: int) -> Change:
    """The first answer only."""
    asked: list[str] = []

    def change(request: Request) -> bool:
        asked.append(request.path)
        if len(asked) == 1:
            request.reply(number, b"", Retry_After="1")
        return len(asked) == 1

    return change


def slowly(request: Request, content: bytes) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    for at in range(0, len(content), 60_000):
        request.wfile.write(content[at : at + 60_000])
        request.wfile.flush()
        time.sleep(0.1)


def cut_off(request: Request, content: bytes) -> None:
    start = int(request.headers.get("Range", "bytes=0-")[6:-1])
    request.reply(206 if start else 200, content[start:][:10], length=len(content) - start)


def cut_off_once() -> Change:
    asked: list[str] = []

    def answer(request: Request, content: bytes) -> None:
        asked.append(request.headers.get("Range", ""))
        if len(asked) == 1:
            request.reply(200, content[:100_000], length=len(content))
        else:
            start = int(asked[-1][6:-1] or 0)
            request.reply(206, content[start:])

    return blob(answer)


def another_size(request: Request) -> bool:
    value = json.loads(IMAGE.manifest)
    value["layers"][0]["size"] += 1
    if "/manifests/" in request.path:
        kind = "application/vnd.oci.image.manifest.v1+json"
        request.reply(200, json.dumps(value).encode(), Content_Type=kind)
    return "/manifests/" in request.path


def loop(request: Request) -> bool:
    request.reply(307, Location=f"http://{request.headers['Host']}{request.path}")
    return "/manifests/" in request.path


FAULTS: list[tuple[str, Change, int, str]] = [
    ("401", status(401), 77, "wants credentials"),
    ("403", status(403), 77, "does not let us pull it"),
    ("404", status(404), 69, "does not have it"),
    ("429 once, Retry-After: 1", once(429), 0, ""),
    ("429, Retry-After: 3600", status(429, Retry_After="3600"), 69, "answers 429"),
    ("500 once", once(500), 0, ""),
    ("500 always", status(500), 69, "answers 500"),
    ("slow", blob(slowly), 0, ""),
    ("truncated once", cut_off_once(), 0, ""),
    ("truncated always", blob(cut_off), 69, "cannot be reached"),
    ("wrong digest", blob(lambda request, content: request.reply(200, bytes(len(content)))), 65, "its sha256 is"),
    ("wrong size", another_size, 65, "bytes"),
    ("redirect loop", loop, 69, "redirects more than 5 times"),
]

_told: list[str] = []


def pulled(podrun: Any, case: str, ref: str, code: int, words: str, **environ: str) -> None:
    done = podrun("image", "pull", "-q", ref, **environ)
    said = done.stderr.strip()
    _told.append(f"{case:28} {done.returncode:4}  {said or 'pulled'}")
    assert (done.returncode, words in said, said.count("\n")) == (code, True, 0), done.stderr
    root = Path(environ.get("PODRUN_ROOT", str(podrun.root)))
    assert bool([name for name in visible(root) if name.startswith("refs/")]) == (code == 0)
    assert not {name for name in visible(root) if name.startswith(("tmp/", "locks/"))}


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    yield
    print("\n\nfault                        exit  message", *_told, sep="\n")


@pytest.mark.parametrize(("case", "change", "code", "words"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_registrys_fault_is_told_in_one_line(podrun: Any, case: str, change: Change, code: int, words: str) -> None:
    with faulty(IMAGE, lambda request: request.path != "/v2/" and change(request)) as server:
        pulled(podrun, case, f"{server.host}/web", code, words)


def test_a_redirect_to_another_origin_is_followed_without_credentials(podrun: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with faulty(IMAGE) as other:
        elsewhere = blob(lambda request, _: request.reply(307, Location=f"http://{other.host}{request.path}"))
        with faulty(IMAGE, elsewhere) as server:
            login = {"auths": {server.host: {"auth": "bWU6c2VjcmV0"}}}
            (tmp_path / "config.json").write_text(json.dumps(login))
            inner = server.change

            def guarded(request: Request) -> bool:
                if request.headers.get("Authorization") != "Basic bWU6c2VjcmV0":
                    request.reply(401, b"{}", WWW_Authenticate='Basic realm="x"')
                    return True
                return bool(inner(request))

            server.change = guarded
            pulled(podrun, "redirect to another origin", f"{server.host}/web", 0, "", DOCKER_CONFIG=str(tmp_path))
        assert other.seen
        assert not [headers for _, _, headers in other.seen if "Authorization" in headers]


@pytest.mark.parametrize(("case", "options"), [("disk full", ""), ("read-only store", "ro")])
def test_a_disks_fault_is_told_in_one_line(podrun: Any, small_disk: Path, case: str, options: str) -> None:
    if options:
        subprocess.run(["mount", "-o", f"remount,{options}", str(small_disk)], check=True)
    words = "Read-only file system" if options else "No space left on device"
    with faulty(IMAGE) as server:
        pulled(podrun, case, f"{server.host}/web", 73, words, PODRUN_ROOT=str(small_disk / "root"))
