"""Builds podrun_VERSION_all.deb from this checkout: the modules, what Debian lacks of their needs, pages, completions.

Run it with the environment that ./dev makes: man pages and completions come from the command line itself.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from email.utils import formatdate
from pathlib import Path

import man

from podrun import __version__
from podrun.cli import completion
from podrun.cli.main import podrun
from podrun.cluster import agent
from podrun.systemd import following, generator

CHECKOUT = Path(__file__).parents[1]
DEBIAN = Path(__file__).parent / "debian"
MAINTAINER = "podrun maintainers <podrun@localhost>"
#: What Debian 12 and 13 have no package of; out of the way of one that may come.
CARRIED = "cgroupspy"
PRIVATE = "usr/lib/podrun"
MODULES = "usr/lib/python3/dist-packages"
COMMAND = "usr/bin/podrun"
SYSTEM = "usr/lib/systemd/system"
COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/podrun",
    "zsh": "usr/share/zsh/vendor-completions/_podrun",
    "fish": "usr/share/fish/vendor_completions.d/podrun.fish",
}


def build(output: Path) -> Path:
    """Builds the package into a directory; returns its path."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="podrun-deb-") as place:
        tree = Path(place) / "tree"
        _modules(tree)
        _command(tree)
        _for_systemd(tree)
        _pages(tree)
        _shells(tree)
        _documents(tree)
        (tree / "etc/podrun/hooks.d").mkdir(parents=True)
        _modes(tree)
        _control(tree)
        package = output / f"podrun_{__version__}_all.deb"
        environ = {**os.environ, "SOURCE_DATE_EPOCH": str(_epoch())}
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(tree), str(package)],
            env=environ, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    return package


def _modules(tree: Path) -> None:
    modules = tree / MODULES
    modules.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--root-user-action=ignore"]
    subprocess.run([*pip, "--no-deps", "--no-compile", "--target", str(modules), str(CHECKOUT)], check=True)
    # The command is made below; the list of files is dpkg's.
    shutil.rmtree(modules / "bin")
    for info in modules.glob("podrun-*.dist-info"):
        for name in ("RECORD", "REQUESTED", "direct_url.json"):
            (info / name).unlink(missing_ok=True)
        (info / "INSTALLER").write_text("dpkg\n")
        shutil.rmtree(info / "licenses", ignore_errors=True)
    for link in modules.rglob("__pycache__"):
        shutil.rmtree(link)
    source = _carried().parent
    shutil.copytree(source, tree / PRIVATE / CARRIED, ignore=shutil.ignore_patterns("__pycache__", "test"))


def _carried() -> Path:
    found = importlib.util.find_spec(CARRIED)
    assert found is not None and found.origin is not None
    return Path(found.origin)


def _command(tree: Path) -> None:
    """The command of the wheel, for Debian's interpreter alone: no variable and no directory of a user's matters.

    It begins without site (2 ms); podrun adds what that would have when a command needs it.
    """
    text = (CHECKOUT / "bin/podrun").read_text().replace("#!python\n", "#!/usr/bin/python3 -IS\n", 1)
    line = "from podrun.__main__ import main\n"
    assert line in text
    paths = f'sys.path += ["/{MODULES}", "/{PRIVATE}"]'
    begin = f"import sys\n\n{paths}\n\nimport podrun\n{line}\npodrun.SITE_LEFT_OUT = True\n"
    text = text.replace(line, begin, 1)
    _write(tree / COMMAND, text)
    (tree / COMMAND).chmod(0o755)


def _for_systemd(tree: Path) -> None:
    path = tree / "usr/lib/systemd/system-generators/podrun-generator"
    _write(path, generator.text(f"/{COMMAND}"))
    path.chmod(0o755)
    _write(tree / agent.AGENT.lstrip("/"), Path(agent.SOURCE).read_text())
    (tree / agent.AGENT.lstrip("/")).chmod(0o755)
    _write(tree / f"{SYSTEM}/pacemaker.service.d/podrun.conf", agent.ORDER_TEXT)
    _write(tree / SYSTEM / following.GC, following.collecting(f"/{COMMAND} gc"))
    (tree / SYSTEM / "multi-user.target.wants").mkdir()
    (tree / SYSTEM / f"multi-user.target.wants/{following.GC}").symlink_to(f"../{following.GC}")
    _write(tree / "usr/lib/tmpfiles.d/podrun.conf", (DEBIAN / "podrun.conf").read_text())


def _pages(tree: Path) -> None:
    for name, text in man.pages().items():
        _compressed(tree / f"usr/share/man/man{name[-1]}" / f"{name}.gz", text)


def _shells(tree: Path) -> None:
    for shell, path in COMPLETIONS.items():
        _write(tree / path, completion.script(podrun, shell).lstrip("\n"))


def _documents(tree: Path) -> None:
    place = tree / "usr/share/doc/podrun"
    licence = ast.get_docstring(ast.parse((_carried().parent / "controllers.py").read_text())) or ""
    indented = "\n".join(f" {line.rstrip()}" if line.strip() else " ." for line in licence.splitlines())
    _write(place / "copyright", (DEBIAN / "copyright").read_text().replace(" @BSD@", indented))
    changes = (CHECKOUT / "CHANGELOG.md").read_text()
    entry = f"podrun ({__version__}) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n"
    _compressed(place / "changelog.gz", f"{entry} -- {MAINTAINER}  {formatdate(_epoch(), localtime=False)}\n")
    _compressed(place / "CHANGELOG.md.gz", changes)
    _write(tree / "usr/share/lintian/overrides/podrun", (DEBIAN / "overrides").read_text())
    shutil.copytree(CHECKOUT / "docs", place / "docs", ignore=_no_pages)
    shutil.copytree(CHECKOUT / "examples", place / "examples", ignore=shutil.ignore_patterns("__pycache__"))


def _no_pages(directory: str, names: list[str]) -> set[str]:
    """What in docs is no page: how diagrams are drawn and a site is built."""
    return {name for name in names if not name.endswith((".md", ".svg")) and not os.path.isdir(f"{directory}/{name}")}


def _control(tree: Path) -> None:
    control = tree / "DEBIAN"
    control.mkdir()
    control.chmod(0o755)
    files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    size = sum(-(-path.stat().st_size // 1024) for path in files) + sum(1 for path in tree.rglob("*") if path.is_dir())
    text = (DEBIAN / "control").read_text()
    for word, value in {"@VERSION@": __version__, "@MAINTAINER@": MAINTAINER, "@SIZE@": str(size)}.items():
        text = text.replace(word, value)
    _write(control / "control", text)
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(tree)}\n" for path in files]
    _write(control / "md5sums", "".join(sums))
    for name in ("postinst", "prerm", "postrm"):
        _write(control / name, (DEBIAN / name).read_text())
        (control / name).chmod(0o755)


def _modes(tree: Path) -> None:
    for path in [tree, *tree.rglob("*")]:
        if path.is_dir() or stat.S_IMODE(path.stat().st_mode) & 0o100:
            path.chmod(0o755)
        else:
            path.chmod(0o644)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o644)


def _compressed(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def _epoch() -> int:
    """When the checkout's last commit was made: the same sources give the same package."""
    if "SOURCE_DATE_EPOCH" in os.environ:
        return int(os.environ["SOURCE_DATE_EPOCH"])
    argv = ["git", "-C", str(CHECKOUT), "log", "-1", "--format=%ct"]
    told = subprocess.run(argv, check=False, capture_output=True, text=True)
    return int(told.stdout) if told.returncode == 0 and told.stdout.strip() else 1767225600


if __name__ == "__main__":
    print(build(Path(sys.argv[1] if len(sys.argv) > 1 else CHECKOUT / "dist")))
