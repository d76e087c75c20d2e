"""The Debian package and the single file: what is in them, and that it is what podrun says of itself."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from podrun.cli.main import podrun as command
from podrun.cluster import agent
from podrun.engine import hook_loader
from support.launcher import Podrun


def page(unpacked: Path, name: str) -> str:
    text = gzip.decompress((unpacked / f"usr/share/man/man{name[-1]}/{name}.gz").read_bytes()).decode()
    # What roff makes of its escapes.
    for written, meant in (("\\-", "-"), ("\\(aq", "'"), ("\\(dq", '"'), ("\\&", ""), ("\\e", "\\")):
        text = text.replace(written, meant)
    return text


def commands(group: click.Command, words: tuple[str, ...] = ("podrun",)) -> Iterator[Any]:
    yield words, group
    for name, inner in getattr(group, "commands", {}).items():
        yield from commands(inner, (*words, name))


def test_every_command_has_a_page_that_names_each_of_its_options(unpacked: Any) -> None:
    for words, inner in commands(command):
        text = page(unpacked, f"{'-'.join(words)}.1")
        for parameter in inner.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert all(name in text for name in parameter.opts), (words, parameter.opts)


def test_the_page_of_the_pod_file_names_each_key_of_each_hook(unpacked: Any) -> None:
    text = page(unpacked, "podrun.toml.5")
    for name in hook_loader.FIRST_PARTY:
        for key in hook_loader.load(name).Options._field_defaults:
            assert re.search(rf"^\.BR {re.escape(key)}\b", text, re.MULTILINE), (name, key)
    assert "on_failure" in text


def test_the_page_of_the_hook_contract_is_the_reference(unpacked: Any) -> None:
    assert "conformance kit" in page(unpacked, "podrun-hook.7")


def test_the_package_carries_only_what_debian_lacks(unpacked: Any) -> None:
    modules = unpacked / "usr/lib/python3/dist-packages"
    assert sorted(path.name for path in modules.iterdir() if not path.name.endswith(".dist-info")) == [
        "podrun",
        "podrun_hooks",
    ]
    assert [path.name for path in (unpacked / "usr/lib/podrun").iterdir()] == ["cgroupspy"]
    assert not [path for path in unpacked.rglob("*") if path.suffix in (".pyc", ".so")]
    depends = re.search(r"^Depends: (.*)$", (unpacked / "DEBIAN/control").read_text(), re.MULTILINE)
    assert {
        "python3-click",
        "python3-pyroute2",
        "python3-docker",
        "python3-psutil",
        "python3-zstandard",
        "python3-yaml",
    } <= set(depends[1].split(", "))


def test_the_command_begins_without_site_and_commands_find_what_site_finds(unpacked: Any, tmp_path: Path) -> None:
    text = (unpacked / "usr/bin/podrun").read_text()
    assert text.startswith("#!/usr/bin/python3 -IS\n")
    command = tmp_path / "podrun"
    command.write_text(text.replace('"/usr/lib/', f'"{unpacked}/usr/lib/'))
    # click is in this interpreter's site-packages only.
    argv = [sys.executable, "-IS", str(command)]
    assert subprocess.run([*argv, "--version"], capture_output=True, text=True, timeout=60).stdout.startswith("podrun")
    told = subprocess.run([*argv, "hook", "ls"], capture_output=True, text=True, timeout=60)
    assert "container" in told.stdout, told.stderr


def test_nothing_in_the_package_starts_stops_or_removes_a_pod(unpacked: Any) -> None:
    for name in ("postinst", "prerm", "postrm"):
        text = (unpacked / "DEBIAN" / name).read_text()
        lines = [
            line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(("#", "echo"))
        ]
        cache = "rm -f /usr/lib/python3/dist-packages/podrun/bundle.pyc*"
        assert not [
            line
            for line in lines
            if line != cache and re.search(r"systemctl .*(start|stop|restart)\b|rm -|rmdir|podrun (up|down)", line)
        ]
        assert subprocess.run(["sh", "-n"], input=text, text=True).returncode == 0


def test_the_generator_of_the_package_is_alone_and_starts_the_package_s_command(unpacked: Any, tmp_path: Path) -> None:
    generator = unpacked / "usr/lib/systemd/system-generators/podrun-generator"
    assert os.access(generator, os.X_OK)
    assert "PODRUN = '/usr/bin/podrun'" in generator.read_text()
    for name in ("normal", "early", "late"):
        (tmp_path / name).mkdir()
    argv = ["/usr/bin/python3", "-IS", generator, *(str(tmp_path / name) for name in ("normal", "early", "late"))]
    assert subprocess.run(argv, timeout=30).returncode == 0


def test_the_package_has_what_a_host_of_a_cluster_needs(unpacked: Any) -> None:
    placed = unpacked / agent.AGENT.lstrip("/")
    assert os.access(placed, os.X_OK)
    assert placed.read_bytes() == Path(agent.SOURCE).read_bytes()
    assert (unpacked / "usr/lib/systemd/system/pacemaker.service.d/podrun.conf").read_text() == agent.ORDER_TEXT


def test_the_same_sources_give_the_same_package(package: Any, tmp_path: Path) -> None:
    release = Path(__file__).parents[2] / "release"
    subprocess.run([sys.executable, release / "deb.py", tmp_path], check=True, stdout=subprocess.DEVNULL, timeout=300)
    assert (tmp_path / package.name).read_bytes() == package.read_bytes()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_finds_its_completion(unpacked: Any, shell: str) -> None:
    place = {
        "bash": "bash-completion/completions/podrun",
        "zsh": "zsh/vendor-completions/_podrun",
        "fish": "fish/vendor_completions.d/podrun.fish",
    }
    assert "_PODRUN_COMPLETE" in (unpacked / "usr/share" / place[shell]).read_text()


@pytest.mark.root
def test_the_single_file_starts_a_pod_and_its_units_start_the_single_file(single_file: Any, podrun: Podrun) -> None:
    environ = {key: value for key, value in podrun.environ.items() if key != "PYTHONPATH"}
    argv = ["/usr/bin/python3", "-I", str(single_file), "--root", str(podrun.root), "--run", str(podrun.run)]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*argv, *words], env=environ, capture_output=True, text=True, timeout=60)

    path = podrun.file(
        "web", 'chain = [ { hook = "image", ref = "host:" }, { hook = "container", command = ["echo", "hello"] } ]'
    )
    done = run("up", path)
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
    assert f"ExecStart={single_file} " in run("unit", path).stdout


@pytest.mark.root
def test_the_single_file_says_which_compiled_module_is_missing(single_file: Any) -> None:
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", single_file, "stats"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 69
    assert "psutil" in done.stderr and "python3-psutil" in done.stderr


def test_the_single_file_runs_nothing_that_others_could_have_put_into_its_cache(
    single_file: Any, tmp_path: Path
) -> None:
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"] if os.geteuid() == 0 else []
    os.chmod(tmp_path, 0o777)
    for directory in [tmp_path, *tmp_path.parents][:4]:
        directory.chmod(directory.stat().st_mode | 0o055)
    single_file.parent.chmod(0o755)
    single_file.parent.parent.chmod(0o755)
    argv = [*user, "/usr/bin/python3", "-I", str(single_file), "--version"]
    assert subprocess.run(argv, env=environ, capture_output=True, timeout=60).returncode == 0
    (place,) = (path for path in (tmp_path / "podrun").iterdir())
    place.chmod(0o777)
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode and "can be changed by others" in done.stderr
