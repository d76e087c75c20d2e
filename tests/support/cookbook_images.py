"""The images of the cookbook, made of Debian's packages: what a recipe relies on is what the usual images promise."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from support import image_builder as build

PACKAGES = "nginx-light postgresql redis-server mariadb-server rabbitmq-server haproxy gunicorn nodejs".split()

_AS = "setpriv --reuid {0} --regid {0} --init-groups"
_POSTGRES = f"""#!/bin/sh
set -e
[ "${{1:-postgres}}" = postgres ] || exec "$@"
PATH=$PATH:/usr/lib/postgresql/15/bin
mkdir -p "$PGDATA" /run/postgresql
chown -R postgres "$PGDATA" "$(dirname "$PGDATA")" /run/postgresql
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    install -o postgres -m 600 "$POSTGRES_PASSWORD_FILE" /tmp/password
    {_AS.format("postgres")} initdb -D "$PGDATA" -A scram-sha-256 --pwfile=/tmp/password >/dev/null
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
fi
exec {_AS.format("postgres")} postgres -D "$PGDATA" -c listen_addresses='*'
"""
_MARIADB = """#!/bin/sh
set -e
mkdir -p /run/mysqld
chown -R mysql /var/lib/mysql /run/mysqld
[ -d /var/lib/mysql/mysql ] || mariadb-install-db --user=mysql --datadir=/var/lib/mysql >/dev/null
echo "GENERATED ROOT PASSWORD: none" >&2
exec mariadbd --user=mysql --bind-address=0.0.0.0
"""
_APP = """import socket

def application(environ, start_response):
    with socket.create_connection(("postgres", 5432), 5):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"the database is there\\n"]
"""
_SHOP = "require('http').createServer((_, answer) => answer.end('open\\n')).listen(3000)\n"
_FILES = {
    "usr/local/bin/postgres-entrypoint": (_POSTGRES, 0o755),
    "usr/local/bin/mariadb-entrypoint": (_MARIADB, 0o755),
    "usr/local/bin/report": ('#!/bin/sh\necho "report: $*"\n', 0o755),
    "srv/server.js": (_SHOP, 0o644),
    "srv/app/app.py": (_APP, 0o644),
}
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: The configuration of each image, by the name that the recipes have for it.
_IMAGES: dict[str, dict[str, Any]] = {
    "nginx:1.27": {"Cmd": ["nginx", "-g", "daemon off;"]},
    "postgres:16": {
        "Entrypoint": ["postgres-entrypoint"],
        "Cmd": ["postgres"],
        "Env": [f"{_PATH}:/usr/lib/postgresql/15/bin"],
    },
    "redis:7": {"Cmd": ["redis-server"]},
    "mariadb:11": {"Entrypoint": ["mariadb-entrypoint"]},
    "rabbitmq:3": {"Cmd": ["rabbitmq-server"]},
    "haproxy:3.0": {},
    "team/app:stable": {"WorkingDir": "/srv/app"},
    "team/shop:stable": {},
    "team/report:stable": {},
}


def debian(place: Path) -> Path:
    """A root with the servers: mmdebstrap brings them, minutes."""
    argv = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}", "bookworm", str(place)]
    subprocess.run(argv, check=True, timeout=1200)
    return place


def layout(root: Path, place: Path) -> str:
    """An OCI layout with all images of the cookbook, which have one layer in common; returns its path."""
    base = subprocess.run(
        ["tar", "-C", str(root), "--exclude=./dev/*", "--exclude=./var/cache/*", "-c", "."],
        capture_output=True,
        check=True,
    )
    layers = (
        build.Layer(base.stdout, ""),
        build.Layer(
            build.tar(*(build.file(name, text.encode(), mode=mode) for name, (text, mode) in _FILES.items())), ""
        ),
    )
    return build.layout(
        str(place),
        {
            f"registry.example/{name}": build.image(*layers, **{"Env": [_PATH], **more})
            for name, more in _IMAGES.items()
        },
    )
