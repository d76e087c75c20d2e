"""The machine itself as an image, and what the start path of any stored image costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from podrun.hook import Pod, Step
from podrun_hooks import image as hook
from podrun_hooks.image import commands
from podrun_hooks.image.sources import host
from podrun_hooks.image.store import layout as store
from support import image_builder as build

pytestmark = pytest.mark.root

HERE = Path(__file__).parents[2]


def step(root: Path, ref: str) -> Step:
    return Step(
        Pod("t", str(root), str(root)),
        "image",
        "image",
        hook.Options(ref=ref, pull="missing", platform="", verify=None),
    )


def test_the_host_gives_its_usr_read_only_and_nothing_of_its_users(tmp_path: Path) -> None:
    found = hook.up(step(tmp_path, "host:"), {})["images"]["image"]
    (usr, *_) = found["mounts"]
    assert (usr["hostPath"], usr["containerPath"]) == ("/usr", "/usr")
    assert {"rbind", "ro", "rro", "nosuid", "nodev"} <= set(usr["options"])
    root = found["layers"][0]
    users = [line.split(":")[0] for line in Path(f"{root}/etc/passwd").read_text().splitlines()]
    assert users == ["root", "nobody"]
    for secret in ("shadow", "gshadow", "ssl/private", "ssh", "machine-id", "sudoers"):
        assert not os.path.lexists(f"{root}/etc/{secret}")
    assert os.stat(f"{root}/tmp").st_mode & 0o7777 == 0o1777
    assert os.stat(f"{root}/root").st_mode & 0o7777 == 0o700
    assert os.path.exists(f"{root}/etc/ld.so.cache")
    for name in ("dev", "proc", "sys", "usr", "run"):
        assert os.listdir(f"{root}/{name}") == []
    for name in ("bin", "lib", "sbin"):
        if os.path.islink(f"/{name}"):
            assert os.readlink(f"{root}/{name}") == os.readlink(f"/{name}")
        else:
            assert f"/{name}" in [mount["hostPath"] for mount in found["mounts"]]


def test_nothing_that_only_root_may_read_is_copied(tmp_path: Path) -> None:
    source = tmp_path / "etc"
    source.mkdir(mode=0o755)
    (source / "public").write_text("public")
    (source / "private").write_text("private")
    (source / "private").chmod(0o600)
    (source / "closed").mkdir(mode=0o700)
    (source / "closed/file").write_text("x")
    (source / "link").symlink_to("/etc/shadow")
    host._copy(str(source), str(tmp_path / "copy"))
    assert sorted(os.listdir(tmp_path / "copy")) == ["link", "public"]
    assert os.readlink(tmp_path / "copy/link") == "/etc/shadow"


def test_the_hosts_directory_is_made_once_until_something_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = commands.pull(str(tmp_path), "host:")
    made = os.stat(first.layers[0]).st_ctime_ns
    again = commands.pull(str(tmp_path), "host:")
    assert (again, os.stat(again.layers[0]).st_ctime_ns) == (first, made)
    monkeypatch.setattr(host, "_FORM", 99)
    changed = commands.pull(str(tmp_path), "host:")
    assert changed.digest != first.digest
    commands.prune(str(tmp_path), lambda: {first.digest})
    assert os.path.isdir(first.layers[0])
    commands.prune(str(tmp_path), set)
    assert not os.path.isdir(first.layers[0])
    assert os.path.isdir(changed.layers[0])


# --- the start path

HEAVY = (
    "typing re json enum signal collections dataclasses subprocess tomllib pathlib shutil tempfile functools hashlib "
    "click pyroute2 docker http.client urllib urllib3 zlib zstandard ctypes threading tarfile contextlib"
)

PROGRAM = """
import sys, time
from podrun.hook import Pod, Step
before = set(sys.modules)
started = time.perf_counter()
from podrun_hooks import image as hook
imported = time.perf_counter()
step = Step(Pod("t", sys.argv[1], "/run"), "image", "image", hook.Options(ref=sys.argv[2], pull="missing", platform="", verify=None))
assert hook.check(step) == []
facts = hook.up(step, {})
hook.down(step, facts)
done = time.perf_counter()
print(1000 * (imported - started), 1000 * (done - imported), *sorted(set(sys.modules) - before))
"""


def cached_start(root: str, ref: str) -> tuple[float, float, list[str]]:
    """Milliseconds of importing the hook and of check, up and down; the modules that were imported."""
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environ["PYTHONPATH"] = f"{HERE.parent}:{HERE.parent / 'hooks'}"
    argv = [sys.executable, "-S", "-c", PROGRAM, root, ref]
    words = subprocess.run(argv, env=environ, check=True, capture_output=True, text=True).stdout.split()
    return float(words[0]), float(words[1]), words[2:]


@pytest.mark.parametrize("kind", ["stored", "host", "dir"])
def test_a_start_that_needs_nothing_imports_nothing_heavy(tmp_path: Path, kind: str) -> None:
    built = build.image(*[build.tar(build.file(f"f{number}")) for number in range(8)])
    layout = build.layout(str(tmp_path / "layout"), {"v1": built})
    ref = {"stored": f"oci:{layout}:v1", "host": "host:", "dir": f"dir:{tmp_path}"}[kind]
    root = str(tmp_path / "root")
    commands.pull(root, ref)
    imported = cached_start(root, ref)[2]
    assert [name for name in imported if name in HEAVY.split()] == []
    best = [min(times) for times in zip(*(cached_start(root, ref)[:2] for _ in range(5)), strict=True)]
    assert sum(best) < 5  # on an idle machine less than 2


def test_long_names_have_records_of_their_own(tmp_path: Path) -> None:
    names = [f"registry.example/{'a/' * 100}x{number}:latest" for number in range(2)]
    records = {store.record(str(tmp_path), name) for name in names}
    assert len(records) == 2
    assert all(len(os.path.basename(record)) < 256 for record in records)
