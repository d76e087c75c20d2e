"""Whom root believes: each component of a path, for each thing that root reads, runs or writes to."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from podrun import ownership
from podrun.errors import NOT_ALLOWED, WRONG_FILE, Failure
from podrun.hook import Pod, Step
from podrun.options import read
from podrun.podfile import loader
from podrun.systemd import units
from podrun_hooks import oci_hooks, register
from podrun_hooks.executable import hook as executable
from podrun_hooks.image.registry import config, credentials
from podrun_hooks.image.registry.client import Client
from podrun_hooks.image.trust.requirements import content_of
from podrun_hooks.network import cni
from podrun_hooks.network import options as networks
from support.acls import BOB, acl, nfs4
from support.launcher import Podrun

pytestmark = pytest.mark.root


def bobs_link(path: Path) -> None:
    """Puts bob's link where a thing of root's was; the thing is root's as before."""
    moved = path.with_name(f"{path.name}.roots")
    path.rename(moved)
    path.symlink_to(moved)
    os.lchown(path, BOB, BOB)


def below_bob(path: Path) -> None:
    """Root's thing in root's directory, reached through a directory of bob's."""
    os.chown(path.parent, BOB, BOB)


#: What somebody else could change of a thing and its directory.
OPEN = {
    "bob's": lambda path: os.chown(path, BOB, 0),
    "a group's": lambda path: (os.chown(path, 0, BOB), path.chmod(0o775)),
    "everybody's": lambda path: path.chmod(0o777),
    "an acl": acl,
    "bob's link": bobs_link,
    "bob's directory": below_bob,
    "a directory of everybody": lambda path: path.parent.chmod(0o777),
    "a directory of a group": lambda path: (os.chown(path.parent, 0, BOB), path.parent.chmod(0o775)),
    "a directory with an acl": lambda path: acl(path.parent),
}


@pytest.fixture
def thing(home: Path) -> Path:
    """A file that root may believe: executable, in a directory of its own, and below another one."""
    path = home / "above/in/thing"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("how", OPEN)
def test_nothing_is_believed_of_which_somebody_could_change_a_component(thing: Path, how: str) -> None:
    assert ownership.read(str(thing)) == b"{}"
    assert ownership.resolved(str(thing)) == str(thing)
    OPEN[how](thing)  # type: ignore[no-untyped-call]
    for ask in (ownership.read, ownership.resolved):
        with pytest.raises(ownership.Untrusted):
            ask(str(thing))


def test_no_way_around_a_directory_of_bobs_is_one(thing: Path, home: Path) -> None:
    os.chown(thing.parent, BOB, BOB)
    (home / "link").symlink_to(thing)
    (home / "through").symlink_to(thing.parent)
    (thing.parent / "below").mkdir()
    for path in (f"{home}/link", f"{home}/through/thing", f"{thing.parent}/below/../thing", f"{thing.parent}//./thing"):
        with pytest.raises(ownership.Untrusted) as caught:
            ownership.opened(path)
        assert caught.value.path == str(thing.parent)


def test_a_link_of_roots_in_a_directory_of_roots_is_followed(thing: Path, home: Path) -> None:
    (home / "a").symlink_to("above/in")
    (home / "b").symlink_to("a/../in/thing")
    assert ownership.resolved(f"{home}/b") == str(thing)


def test_in_a_directory_like_tmp_roots_own_files_are_read_and_none_is_run(thing: Path) -> None:
    thing.parent.chmod(0o1777)
    assert ownership.read(str(thing)) == b"{}"
    with pytest.raises(ownership.Untrusted):
        ownership.resolved(str(thing))
    bobs_link(thing)
    with pytest.raises(ownership.Untrusted):
        ownership.read(str(thing))


def test_the_rights_of_the_last_directory_count_also_where_it_is_like_tmp(thing: Path) -> None:
    thing.parent.chmod(0o1777)
    with pytest.raises(ownership.Untrusted):
        ownership.resolved(str(thing.parent), strict=False)


def test_what_a_user_owns_may_be_read_for_that_user_and_through_nobody_elses_directory(thing: Path) -> None:
    os.chown(thing, BOB, BOB)
    os.chown(thing.parent, BOB, BOB)
    assert ownership.read(str(thing), owners=None) == b"{}"
    os.chown(thing.parent, BOB + 1, BOB)
    with pytest.raises(ownership.Untrusted):
        ownership.read(str(thing), owners=None)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_a_file_is_a_plain_file_and_nobody_waits_for_another(home: Path, make: Any) -> None:
    make(home / "odd")
    began = time.monotonic()
    with pytest.raises(OSError, match="not a plain file"):
        ownership.read(f"{home}/odd")
    assert time.monotonic() - began < 1


def test_a_file_has_a_size(home: Path) -> None:
    (home / "large").write_bytes(b"")
    os.truncate(home / "large", 1 << 40)
    with pytest.raises(OSError, match="larger than 10 bytes"):
        ownership.read(f"{home}/large", 10)


def test_a_loop_of_links_ends(home: Path) -> None:
    (home / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        ownership.opened(f"{home}/loop")


@pytest.mark.parametrize("which", ["--root", "--run"])
@pytest.mark.parametrize("below", ["", "/made/by/podrun"])
def test_journals_and_layers_lie_where_nobody_could_exchange_them(
    podrun: Podrun, thing: Path, which: str, below: str
) -> None:
    where = f"{thing.parent}/state{below}"
    assert podrun(which, where, "ps").returncode == 0
    os.chown(thing.parent, BOB, BOB)
    done = podrun(which, where, "ps")
    assert (done.returncode, "belongs to uid 1234" in done.stderr) == (77, True)


# --- everything that asks


def step(hook: str, options: object, home: Path) -> Step:
    return Step(Pod("web", f"{home}/root", f"{home}/run", tag="podrun-web"), hook, "hook", options)


def _exec(path: Path, home: Path) -> None:
    path.write_text("#!/bin/sh\n")
    for problem in executable.check(step(f"exec:{path}", {}, home)):
        raise Failure(problem.what, code=problem.code, hint=problem.hint)


def _oci_hook(path: Path, home: Path) -> None:
    entry = {"path": str(path), "stages": ["poststop"]}
    oci_hooks.up(step("oci-hooks", read(oci_hooks.Options, {"hooks": [entry]}), home), {})


def _hooks_d(path: Path, home: Path) -> None:
    (path.parent / "a.json").symlink_to(path.name)
    path.write_text(
        json.dumps(
            {"version": "1.0.0", "hook": {"path": "/bin/true"}, "when": {"always": True}, "stages": ["poststop"]}
        )
    )
    oci_hooks.up(step("oci-hooks", read(oci_hooks.Options, {"directories": [str(path.parent)]}), home), {})


def _registry(path: Path, home: Path) -> None:
    path.unlink()
    path.mkdir(mode=0o755)
    register.up(
        step("register", read(register.Options, {"service": "a", "port": 1, "registry": f"file:{path}"}), home), {}
    )


def _pod_file(path: Path, home: Path) -> None:
    path = path.rename(path.with_suffix(".toml"))
    path.write_text('chain = [{ hook = "register", service = "a", port = 1 }]')
    loader.load(str(path), environ={}, load_hook=lambda _: register, in_unit=True)  # type: ignore[return-value]


def _drop_in(path: Path, home: Path) -> None:
    (home / "web.toml").write_text('chain = [{ hook = "register", service = "a", port = 1 }]')
    (home / "web.toml").chmod(0o644)
    (home / "web.toml.d").symlink_to(path.parent)
    path.with_name("a.toml").symlink_to(path.name)
    path.write_text("")
    loader.load(f"{home}/web.toml", environ={}, load_hook=lambda _: register)  # type: ignore[return-value]


def _generator(path: Path, home: Path) -> None:
    path.write_text("")
    units.read(str(path))


def _networks(path: Path, home: Path) -> None:
    path.write_text("")
    before, networks.NETWORKS = networks.NETWORKS, str(path)
    try:
        networks.networks()
    finally:
        networks.NETWORKS = before


def _registries(path: Path, home: Path) -> None:
    path.write_text("")
    config.load({"PODRUN_REGISTRIES": str(path)})


def _ca(path: Path, home: Path) -> None:
    path.write_bytes(Path("/etc/ssl/certs/ca-certificates.crt").read_bytes())
    client = Client(config.Endpoint("a.example", "x", ca=str(path)), "x", lambda _: credentials.Credentials())
    client.context(own=True)


def _key_or_policy(path: Path, home: Path) -> None:
    content_of(str(path))


def _login(path: Path, home: Path) -> None:
    (home / "config.json").symlink_to(path)
    _docker_config(home)


def _helper(path: Path, home: Path) -> None:
    (home / "config.json").write_text('{"credsStore": "x"}')
    path = path.rename(path.with_name("docker-credential-x"))
    path.write_text('#!/bin/sh\necho \'{"Username":"a","Secret":"b"}\'\n')
    before, os.environ["PATH"] = os.environ["PATH"], f"{path.parent}:{os.environ['PATH']}"
    try:
        _docker_config(home)
    finally:
        os.environ["PATH"] = before


def _docker_config(home: Path) -> None:
    os.environ["DOCKER_CONFIG"] = str(home)
    try:
        credentials.known("a.example")
    finally:
        del os.environ["DOCKER_CONFIG"]


def _cni(path: Path, home: Path) -> None:
    path.with_name("a.conf").symlink_to(path.name)
    path.write_text('{"name": "n", "type": "loopback"}')
    before, cni.CONFIGURATION = cni.CONFIGURATION, str(path.parent)
    try:
        cni.configuration("n")
    finally:
        cni.CONFIGURATION = before


def _cni_plugin(path: Path, home: Path) -> None:
    before, cni.PLUGINS = cni.PLUGINS, (str(path.parent),)  # type: ignore[assignment]
    try:
        cni._plugin(path.name)
    finally:
        cni.PLUGINS = before


ASKS = [
    _exec, _oci_hook, _hooks_d, _registry, _pod_file, _drop_in, _generator, _networks, _registries, _ca, _key_or_policy,
    _login, _helper, _cni, _cni_plugin,
]  # fmt: skip


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("above", [lambda path: below_bob(path.parent), lambda path: path.parent.chmod(0o777)])
def test_everything_that_root_reads_runs_or_writes_to_is_asked_about_its_directories(
    thing: Path, home: Path, ask: Any, above: Any
) -> None:
    above(thing)
    with pytest.raises(Failure) as caught:
        ask(thing, home)
    assert caught.value.code in (NOT_ALLOWED, WRONG_FILE)
    assert "belongs to uid" in caught.value.what or "can be changed by" in caught.value.what
    assert not {"chmod", "chown"} & {*caught.value.hint.split()}, "a directory that is not podrun's stays as it is"


@pytest.mark.parametrize("ask", ASKS)
def test_what_is_roots_alone_passes(thing: Path, home: Path, ask: Any) -> None:
    ask(thing, home)


@pytest.mark.parametrize(
    ("content", "who"),
    [
        (nfs4((0, 0x1601FF, "OWNER@"), (0, 0x120089, "GROUP@"), (0, 0x120089, "EVERYONE@")), ""),
        (nfs4((0, 0x1601FF, "OWNER@"), (0, 0x12, "bob@example"), (0, 0x120089, "EVERYONE@")), "bob@example"),
        (nfs4((0, 0x40000, "1234")), "1234"),
        (nfs4((0, 0x1200A9, "EVERYONE@"), (0, 0x2, "EVERYONE@")), "EVERYONE@"),
        (nfs4((1, 0x2, "bob@example")), ""),
        (nfs4((1, 0x2, "bob@example"), (0, 0x2, "bob@example")), "bob@example"),
        (nfs4((0, 0x1, "OWNER@"))[:-2], "somebody"),
        (nfs4((0, 0x1, "OWNER@")) + b"\0\0\0\0", "somebody"),
        (b"\0\0\0\x05", "somebody"),
        (b"", "somebody"),
    ],
)
def test_a_list_of_nfs4_is_read_to_its_end_and_names_who_may_change_a_file(content: bytes, who: str) -> None:
    assert ownership.nfs4_changer(content) == who
