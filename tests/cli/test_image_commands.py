"""Images on the command line: listed by filters and templates, several in an archive, mounted, removed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import image_builder as build
from support.launcher import Podrun

pytestmark = pytest.mark.root

OLD = build.image(
    build.tar(build.file("a", b"old")),
    build.tar(build.file("b", b"upper")),
    Labels={"tier": "db", "keep": ""},
    Cmd=["/a"],
)
NEW = build.image(build.tar(build.file("a", b"new")), Env=["A=1"])
OLD_ID, NEW_ID = build.digest(OLD.config), build.digest(NEW.config)
NAMES = ("localhost/old:1", "localhost/team/new:2")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podrun]:
    """A podrun with two images."""
    home = Path("/var/lib") / f"podrun-test-images-{os.getpid()}"
    home.mkdir(mode=0o755)
    podrun = Podrun(home)
    place = build.layout(str(tmp_path_factory.mktemp("layout")), dict(zip(NAMES, (OLD, NEW), strict=True)))
    podrun("image", "import", place, check=True)
    yield podrun
    podrun("image", "unmount", "--all")
    subprocess.run(["rm", "-rf", str(home)], check=True)


def listed(podrun: Podrun, *words: str) -> list[str]:
    return podrun("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", *words, check=True).stdout.split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ((), NAMES),
        (("--filter", "reference=localhost/old"), NAMES[:1]),
        (("--filter", "reference=localhost/old:1"), NAMES[:1]),
        (("--filter", "reference=localhost/*"), NAMES),
        (("--filter", "reference=*/new:2"), NAMES[1:]),
        (("--filter", "label=tier"), NAMES[:1]),
        (("--filter", "label=tier=web"), ()),
        (("--filter", f"id={NEW_ID[7:19]}"), NAMES[1:]),
        (("--filter", "dangling=true"), ()),
        (("--filter", "dangling=false"), NAMES),
        (("--filter", "before=localhost/old:1"), ()),
        (("--filter", "until=10m"), NAMES),
        (
            ("--sort", "id"),
            sorted(NAMES, key=dict(zip(NAMES, (OLD_ID, NEW_ID), strict=True)).get),
        ),
        (("--sort", "tag"), NAMES),
        (("localhost/team/*",), NAMES[1:]),
    ],
)
def test_images_are_found(own: Podrun, words: tuple[str, ...], found: tuple[str, ...]) -> None:
    assert listed(own, *words) == list(found)


def test_templates_of_images(own: Podrun) -> None:
    form = "{{.Id}} {{.RepoTags}} {{json .Config.Labels}} {{.Config.Cmd}} {{len .RootFS.Layers}} {{.Architecture}}"
    told = own("image", "inspect", "-f", form, NAMES[0], check=True).stdout
    assert told == f'{OLD_ID[7:]} [{NAMES[0]}] {{"tier":"db","keep":""}} [/a] 2 amd64\n'
    table = own("images", "--format", "table {{.Repository}}\\t{{.ID}}", NAMES[0], check=True).stdout
    assert table == f"REPOSITORY      IMAGE ID\nlocalhost/old   {OLD_ID[7:19]}\n"
    [first, *_] = own("image", "history", "--format", "{{.ID}} {{.Size}}", NAMES[0], check=True).stdout.splitlines()
    assert first.startswith(OLD_ID[7:19])
    assert own("system", "df", "--format", "{{.Type}} {{.Total}} {{.Active}}", check=True).stdout.splitlines() == [
        "Images 2 0", "Containers 0 0", "Local Volumes 0 0",
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_an_archive_holds_several_images(own: Podrun, tmp_path: Path, home: Path, form: str) -> None:
    path = str(tmp_path / "both.tar")
    own("save", "-o", path, "--format", form, *NAMES, check=True)
    other = Podrun(home)
    with open(path, "rb") as file:
        done = subprocess.run(other.argv("load"), env=other.environ, stdin=file, capture_output=True, text=True)
    assert sorted(done.stdout.splitlines()) == [f"Loaded image: {name}" for name in NAMES]
    assert listed(other) == list(NAMES)
    argv = ["skopeo", "inspect", "--config", f"{form}:{path}:{NAMES[1]}"]
    told = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
    assert told["config"]["Env"] == ["A=1"]


def test_an_image_is_mounted_until_it_is_unmounted(own: Podrun) -> None:
    places = {name: own("image", "mount", name, check=True).stdout.strip() for name in NAMES}
    assert own("image", "mount", NAMES[0], check=True).stdout.strip() == places[NAMES[0]]
    assert Path(places[NAMES[0]], "a").read_bytes() + Path(places[NAMES[0]], "b").read_bytes() == b"oldupper"
    with pytest.raises(OSError, match="Read-only"):
        Path(places[NAMES[1]], "c").touch()
    assert own("image", "mount").stdout.splitlines() == [f"{name}  {place}" for name, place in places.items()]
    assert "in use" in own("image", "rm", NAMES[0]).stderr
    busy = subprocess.Popen(["sleep", "1000"], cwd=places[NAMES[0]])
    try:
        done = own("image", "unmount", NAMES[0])
        assert (done.returncode, f"sleep ({busy.pid})" in done.stderr or str(busy.pid) in done.stderr) == (75, True)
    finally:
        busy.kill()
        busy.wait()
    for told in (f"{OLD_ID[7:]}\n", ""):
        assert own("image", "umount", NAMES[0], check=True).stdout == told
    own("image", "unmount", "--all", check=True)
    assert own("image", "mount").stdout == ""
    assert not any(os.path.exists(place) for place in places.values())


@pytest.mark.parametrize("writable", [False, True])
def test_an_image_is_mounted_into_a_container(own: Podrun, writable: bool) -> None:
    mount = f"type=image,src={NAMES[0]},dst=/i{',rw=true' if writable else ''}"
    script = "cat /i/a /i/b; echo changed 2>/dev/null >/i/a; cat /i/a"
    words = ["run", "--rm", "--name", "a", "--network", "none", "--mount", mount, "host:", "sh", "-c", script]
    for _ in range(2):
        told = own(*words).stdout
        assert told == ("oldupperchanged\n" if writable else "oldupperold")
    own("run", "-d", "--name", "b", "--network", "none", "--mount", mount, "host:", "sleep", "1000", check=True)
    form = "{{range .Mounts}}{{.Type}} {{.Source}} {{.Destination}} {{.RW}}{{end}}"
    assert own("inspect", "-f", form, "b", check=True).stdout == f"image {NAMES[0]} /i {str(writable).lower()}\n"
    own("down", "-t", "0", "b", check=True)
    assert not (own.root / "pods/a").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["image", "rm"], "use --all"),
        (["image", "rm", "nosuch"], "is not in the store"),
        (["image", "ls", "--filter", "nmae=x"], "unknown filter"),
        (["image", "ls", "--filter", "before=nosuch"], "is not in the store"),
        (["image", "ls", "--sort", "sizee"], "did you mean 'size'"),
        (["load", "-i", "http://127.0.0.1/x.tar"], "curl -fsSL"),
        (["image", "mount", "nosuch"], "is not in the store"),
        (["login", "-u", "a", "-p", "b", "--password-stdin", "127.0.0.1:1"], "say one of them"),
        (["login", "--password-stdin", "127.0.0.1:1"], "needs --username"),
        (["login", "--get-login", "127.0.0.1:1"], "not logged in"),
    ],
)
def test_what_cannot_be_done_is_told(own: Podrun, words: list[str], told: str) -> None:
    done = own(*words)
    assert done.returncode in (69, 77, 78)
    assert told in done.stderr


def test_removal_of_what_is_not_there_is_no_mistake_when_forced(own: Podrun) -> None:
    own("image", "tag", NAMES[0], "localhost/more:1", check=True)
    assert own("rmi", "-f", "nosuch", "localhost/more:1", check=True).stdout.startswith("removed localhost/more:1\n")
    assert own("rmi", "--ignore", "nosuch", check=True).stdout == ""


def test_inspect_finds_images_and_volumes_too(own: Podrun) -> None:
    own("volume", "create", "data", check=True)
    assert own("inspect", "-f", "{{.Architecture}}", NAMES[0], check=True).stdout == "amd64\n"
    assert own("inspect", "-f", "{{.Name}} {{.Driver}}", "data", check=True).stdout == "data local\n"
    assert own("inspect", "--type", "image", "data").returncode == 69
    done = own("inspect", "nosuch")
    assert (done.returncode, "there is no pod nosuch" in done.stderr) == (69, True)
    own("volume", "rm", "data", check=True)


def test_prune_takes_what_its_filters_choose(own: Podrun) -> None:
    own("image", "tag", NAMES[0], "localhost/old:2", check=True)
    own("image", "prune", "-a", "-f", "--filter", "reference=localhost/old:2", check=True)
    assert listed(own) == list(NAMES)
    own("image", "prune", "-a", "-f", "--filter", "label=nosuch", check=True)
    assert listed(own) == list(NAMES)


def test_another_file_of_credentials_is_read_listed_and_forgotten(own: Podrun, tmp_path: Path) -> None:
    path = tmp_path / "auth.json"
    path.write_text(
        '{"auths": {"r.example": {"auth": "YW5uYTpzZXNhbWU="}, "https://index.docker.io/v1/": {"auth": "YTpi"}}}'
    )
    path.chmod(0o600)
    words = ["--authfile", str(path)]
    assert own("login", *words, "--get-login", "r.example", check=True).stdout == "anna\n"
    assert own("login", *words, "--get-login", check=True).stdout == "a\n"
    told = own("logout", *words, "--all", check=True).stdout
    assert told == "r.example: logged out\ndocker.io: logged out\n"
    assert json.loads(path.read_text()) == {"auths": {}}
