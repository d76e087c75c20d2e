"""Seven servers of Debian in their usual configurations, and three engines that run them the same way."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import NamedTuple, Protocol

from support.launcher import Podrun

PACKAGES = "apache2 php-fpm nginx-light postgresql redis-server haproxy mariadb-server".split()


class Server(NamedTuple):
    """A server as its image would have it. ``opens``: it opens its output by name."""

    name: str
    script: str
    port: int
    stop: str
    reload: str
    #: A word in its log that each start, and a reload, leaves there.
    word: str
    reloaded: str = ""
    #: A command that writes into /data, and one that reads it.
    write: str = "echo kept >/data/word"
    read: str = "cat /data/word"


_APACHE = (
    "printf 'ErrorLog /proc/self/fd/2\\nCustomLog /proc/self/fd/1 combined\\nServerName here\\n' "
    ">/etc/apache2/conf-enabled/zz.conf; sed -i '/ErrorLog/d' /etc/apache2/apache2.conf; "
    "sed -i '/Log/d' /etc/apache2/sites-enabled/*; rm -f /etc/apache2/conf-enabled/other-vhosts*; "
    ". /etc/apache2/envvars; mkdir -p $APACHE_RUN_DIR; exec apache2 -DFOREGROUND"
)
_PHP = (
    "printf '[global]\\nerror_log = /proc/self/fd/2\\ndaemonize = no\\n[www]\\nlisten = 9000\\n"
    "access.log = /proc/self/fd/2\\ncatch_workers_output = yes\\n' >/etc/php/8.2/fpm/pool.d/zz.conf; "
    "mkdir -p /run/php; exec php-fpm8.2"
)
_NGINX = (
    "ln -sf /dev/stdout /var/log/nginx/access.log; ln -sf /dev/stderr /var/log/nginx/error.log; "
    "sed -i 's/^error_log.*/error_log \\/dev\\/stderr notice;/' /etc/nginx/nginx.conf; exec nginx -g 'daemon off;'"
)
_POSTGRES = (
    "B=/usr/lib/postgresql/15/bin; mkdir -p /data/pg /var/run/postgresql; chown -R postgres /data /var/run/postgresql; "
    "[ -s /data/pg/PG_VERSION ] || setpriv --reuid postgres --regid postgres --clear-groups "
    "$B/initdb -D /data/pg >/dev/null; "
    "exec setpriv --reuid postgres --regid postgres --clear-groups $B/postgres -D /data/pg"
)
_HAPROXY = (
    "printf 'global\\n log stdout format raw local0\\ndefaults\\n mode http\\n timeout connect 1s\\n timeout client 1s\\n "
    "timeout server 1s\\nfrontend f\\n bind :8080\\n http-request return status 200\\n' >/tmp/h.cfg; "
    "exec haproxy -W -db -f /tmp/h.cfg"
)
_MARIADB = (
    "mkdir -p /data/my /run/mysqld; chown -R mysql /data/my /run/mysqld; "
    "[ -d /data/my/mysql ] || mariadb-install-db --user=mysql --datadir=/data/my >/dev/null 2>&1; "
    "exec mariadbd --user=mysql --datadir=/data/my"
)
_PSQL = "setpriv --reuid postgres --regid postgres --clear-groups psql -qAt postgres -c"
SERVERS = [
    Server("apache2", _APACHE, 80, "SIGWINCH", "SIGUSR1", "resuming normal operations", "graceful"),
    Server("php-fpm", _PHP, 9000, "SIGQUIT", "SIGUSR2", "ready to handle connections", "Reloading"),
    Server("nginx", _NGINX, 80, "SIGQUIT", "SIGHUP", "start worker processes", "reconfiguring"),
    Server(
        "postgresql", _POSTGRES, 5432, "SIGINT", "SIGHUP", "ready to accept connections", "reloading configuration",
        f"{_PSQL} 'create table t as select 7 as n'", f"{_PSQL} 'select n from t'",
    ),
    Server(
        "redis", "exec redis-server --dir /data --save 60 1", 6379, "SIGTERM", "", "Ready to accept connections", "",
        "redis-cli set word kept", "redis-cli get word",
    ),
    Server("haproxy", _HAPROXY, 8080, "SIGUSR1", "SIGUSR2", "Loading success", "Reloading HAProxy"),
    Server(
        "mariadb", _MARIADB, 3306, "SIGTERM", "SIGHUP", "ready for connections", "",
        "mariadb -e 'create database d; create table d.t as select 7 as n'", "mariadb -NBe 'select n from d.t'",
    ),
]  # fmt: skip


def sh(*argv: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=timeout)


class Peer:
    """podman or docker, by their common words."""

    def __init__(self, name: str, *options: str, image: str = "servers") -> None:
        self.name = name
        self.argv = [name, *options]
        self.image = image

    def start(self, server: Server) -> None:
        volume = f"{server.name}-data:/data"
        argv = ["run", "-d", "--name", server.name, "--network", "none", "--stop-signal", server.stop, "-v", volume]
        if self.name == "podman":
            # Limits that a sandbox without CAP_SYS_RESOURCE can set, and the runtime that takes hybrid cgroups.
            argv += ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=900:900", "--runtime", "runc"]
        done = sh(*self.argv, *argv, self.image, "sh", "-c", server.script)
        assert done.returncode == 0, done.stderr

    def exec(self, server: Server, script: str) -> subprocess.CompletedProcess[str]:
        return sh(*self.argv, "exec", server.name, "bash", "-c", script)

    def reload(self, server: Server) -> None:
        sh(*self.argv, "kill", "-s", server.reload, server.name)

    def stop(self, server: Server) -> int:
        sh(*self.argv, "stop", server.name)
        return int(sh(*self.argv, "wait", server.name).stdout.split()[-1])

    def logs(self, server: Server) -> str:
        done = sh(*self.argv, "logs", server.name)
        return done.stdout + done.stderr

    def remove(self, server: Server) -> None:
        sh(*self.argv, "rm", "-f", server.name)


class Own:
    """podrun: in the foreground, its output in a file of the operator's."""

    name = "podrun"

    def __init__(self, podrun: Podrun, image: str) -> None:
        self.podrun, self.image = podrun, image
        self.running: dict[str, subprocess.Popen[str]] = {}

    def _log(self, server: Server) -> Path:
        return self.podrun.home / f"{server.name}.log"

    def start(self, server: Server) -> None:
        text = (
            # The tests' own default is a second, which a machine that is busy takes for a graceful stop.
            '[pod]\nstop_timeout = "20s"\n'
            f'[[chain]]\nhook = "image"\nref = "{self.image}"\n[[chain]]\nhook = "network"\nmode = "none"\n'
            f'[[chain]]\nhook = "container"\ncommand = {json.dumps(["sh", "-c", server.script])}\n'
            f'volumes = ["{server.name}-data:/data"]\nstop_signal = "{server.stop}"\n'
        )
        path = self.podrun.file(server.name, text)
        with self._log(server).open("a") as log:
            self.running[server.name] = self.podrun.start("up", path, stdout=log, stderr=log)

    def exec(self, server: Server, script: str) -> subprocess.CompletedProcess[str]:
        return self.podrun("exec", server.name, "bash", "-c", script)

    def reload(self, server: Server) -> None:
        [container] = json.loads(self.podrun("inspect", server.name).stdout)["containers"]
        sh("kill", "-s", server.reload.removeprefix("SIG"), str(container["pid"]))

    def stop(self, server: Server) -> int:
        self.podrun("down", server.name, check=True)
        return self.running.pop(server.name).wait(30)

    def logs(self, server: Server) -> str:
        return self._log(server).read_text(errors="replace")

    def remove(self, server: Server) -> None:
        if server.name in self.running:
            self.stop(server)


class Engine(Protocol):
    """What can run a server."""

    name: str

    def start(self, server: Server) -> None: ...
    def exec(self, server: Server, script: str) -> subprocess.CompletedProcess[str]: ...
    def reload(self, server: Server) -> None: ...
    def stop(self, server: Server) -> int: ...
    def logs(self, server: Server) -> str: ...
    def remove(self, server: Server) -> None: ...


class Row(NamedTuple):
    """What became of one server under one engine."""

    server: str
    engine: str
    status: int
    #: Lines in the log after start, reload, stop and another start.
    lines: int
    #: Whether the words that it writes at both starts and the reload are there.
    words: bool
    kept: bool
    stop_seconds: float


def lived(engine: Engine, server: Server) -> Row:
    """Start, write, reload, stop, start again, read, stop."""
    try:
        engine.start(server)
        _until(lambda: _answers(engine, server), server, engine)
        written = engine.exec(server, server.write)
        assert written.returncode == 0, (engine.name, server.name, written)
        if server.reload:
            engine.reload(server)
            time.sleep(1.0)
            assert _answers(engine, server), (engine.name, server.name, "after the reload")
        began = time.monotonic()
        status = engine.stop(server)
        took = time.monotonic() - began
        before = engine.logs(server)
        engine.remove(server)
        engine.start(server)
        _until(lambda: _answers(engine, server), server, engine)
        kept = engine.exec(server, server.read).stdout.strip() in ("kept", "7")
        engine.stop(server)
        text = before if engine.logs(server).startswith(before) else before + engine.logs(server)
        text = engine.logs(server) if len(engine.logs(server)) > len(text) else text
        words = server.word in before and (not server.reloaded or server.reloaded in before)
        return Row(server.name, engine.name, status, len(text.splitlines()), words, kept, took)
    finally:
        engine.remove(server)


def _answers(engine: Engine, server: Server) -> bool:
    return engine.exec(server, f"exec 3<>/dev/tcp/127.0.0.1/{server.port}").returncode == 0


def _until(true: object, server: Server, engine: Engine, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, (engine.name, server.name, engine.logs(server)[-2000:])
        time.sleep(0.2)


def table(rows: list[Row]) -> str:
    lines = [f"{'server':11} {'engine':7} status  lines  words  kept  stop s"]
    for row in rows:
        words, kept = ("yes" if value else "NO" for value in (row.words, row.kept))
        lines.append(
            f"{row.server:11} {row.engine:7} {row.status:6}  {row.lines:5}  {words:5}  {kept:4}  {row.stop_seconds:6.2f}"
        )
    return "\n".join(lines)
