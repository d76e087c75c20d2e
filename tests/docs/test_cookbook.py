"""The recipes of the cookbook are right, and with images of Debian's packages they run."""

from __future__ import annotations

import os
import re
import resource
import subprocess
from pathlib import Path

import pytest

from podrun.engine import hook_loader
from podrun.podfile import loader
from support import cookbook_images
from support.launcher import HERE, Podrun

PAGE = (HERE.parent / "docs" / "how-to" / "cookbook.md").read_text()
RECIPES = {
    re.split(r"[ :]", text)[1]: text for text in re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_right(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(RECIPES[name])
    pod = loader.load(str(tmp_path / name), environ={}, load_hook=hook_loader.load)
    assert f"{pod.name}.toml" == name


def test_there_are_ten() -> None:
    assert len(RECIPES) == 10


#: Recipes in the order in which they need each other, and what is asked of each when it runs.
_ASKED = {
    "nginx.toml": ["curl", "-sf", "http://127.0.0.1:18080/"],
    "postgres.toml": ["podrun", "exec", "-e", "PGPASSWORD=secret", "postgres", "psql", "-h", "127.0.0.1", "-U", "postgres",
                      "-qAtc", "select 'it works'"],
    "redis.toml": ["podrun", "exec", "redis", "redis-cli", "set", "word", "it works"],
    "mariadb.toml": ["podrun", "exec", "mariadb", "mariadb", "-NBe", "select 'it works'"],
    "rabbitmq.toml": ["podrun", "exec", "rabbitmq", "rabbitmqctl", "list_vhosts"],
    "haproxy.toml": ["curl", "-sf", "http://127.0.0.1:18090/"],
    "app.toml": ["curl", "-sf", "http://127.0.0.1:8000/"],
    "shop.toml": ["curl", "-sf", "http://127.0.0.1:3000/"],
    "report.toml": [],
    "backup.toml": [],
}  # fmt: skip
_SAID = {
    "nginx.toml": "a page", "postgres.toml": "it works", "redis.toml": "OK", "mariadb.toml": "it works", "rabbitmq.toml": "/",
    "haproxy.toml": "at the door", "app.toml": "the database is there", "shop.toml": "open",
}  # fmt: skip


@pytest.mark.root
@pytest.mark.prove
def test_the_cookbook_is_cooked(podrun: Podrun, home: Path, tmp_path: Path) -> None:
    root = (
        Path(os.environ["PODRUN_COOKBOOK"])
        if "PODRUN_COOKBOOK" in os.environ
        else cookbook_images.debian(tmp_path / "root")
    )
    podrun("image", "import", cookbook_images.layout(root, home / "layout"), check=True, timeout=300)
    srv = home / "srv"
    for name in ("www", "haproxy", "backup"):
        (srv / name).mkdir(parents=True)
    (srv / "www" / "index.html").write_text("a page\n")
    (srv / "nginx.conf").write_text("events {}\nhttp { server { listen 80; root /usr/share/nginx/html; } }\n")
    (srv / "haproxy" / "haproxy.cfg").write_text(
        "defaults\n mode http\n timeout connect 1s\n timeout client 1s\n timeout server 1s\n"
        "frontend door\n bind 127.0.0.1:18090\n"
        ' http-request return status 200 content-type text/plain string "at the door"\n'
    )
    (home / "credentials").mkdir(mode=0o700)
    for name, text in {"postgres": "secret", "pgpass": "*:*:*:postgres:secret\n"}.items():
        (home / "credentials" / name).write_text(text)
        (home / "credentials" / name).chmod(0o400)
    given = {"CREDENTIALS_DIRECTORY": str(home / "credentials")}
    for name, asked in _ASKED.items():
        text = RECIPES[name].replace('"/srv/', f'"{srv}/').replace("0.0.0.0:80:80", "127.0.0.1:18080:80")
        # Where even root may not raise its limits (a sandbox), the recipe gets as many descriptors as there are.
        text = text.replace("65536:65536", str(min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
        path = podrun.file(name.removesuffix(".toml"), text)
        done = podrun("up", *(["-d"] if asked else []), path, timeout=200, **given)
        assert done.returncode == 0, (name, done.stderr)
        if not asked:
            print(f"{name}: {done.stdout.strip() or 'done'}")
            continue
        argv = podrun.argv(*asked[1:]) if asked[0] == "podrun" else asked
        said = subprocess.run(argv, env=podrun.environ, capture_output=True, text=True, timeout=30)
        assert _SAID[name] in said.stdout, (name, said, podrun("logs", name.removesuffix(".toml")).stderr)
        print(f"{name}: {said.stdout.strip()}", flush=True)
    [dump] = (srv / "backup").glob("*.gz")
    assert b"PostgreSQL database cluster dump" in subprocess.run(["zcat", dump], capture_output=True, check=True).stdout
    for name, asked in _ASKED.items():
        if asked:
            podrun("down", name.removesuffix(".toml"), check=True, timeout=150)
