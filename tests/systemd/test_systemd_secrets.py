"""Secrets of a transient unit on a booted host: no command line, no output of systemctl and no journal tells them."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.systemd_case import IMAGE, PATIENT, Pods, container, sh

pytestmark = pytest.mark.systemd

SECRET = "s3cret-of-this-test"


def test_nobody_is_told_a_secret_of_a_detached_pod(pods: Pods) -> None:
    told = container(f'test "$PASSWORD" = {SECRET[::-1]} || echo has it; {PATIENT}', env=f'{{ OWN = "{SECRET}" }}')
    content = f'[[chain]]\nhook = "storage"\nsource = "file:"\ntarget = "/secret"\ncontent = "{SECRET}"\n'
    path = pods.file("web", f'{IMAGE}{content}{told}\n[service]\nEnvironment = "PASSWORD={SECRET}"\n')
    done = sh("podrun", "up", "-d", str(path))
    assert done.returncode == 0, done.stderr
    try:
        as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c"]
        looking = "cat /proc/*/cmdline; systemctl show podrun-web; systemctl cat podrun-web; "
        looking += "find /run/podrun -type f -exec cat {} +"
        seen = sh(*as_nobody, looking)
        assert SECRET not in seen.stdout + seen.stderr
        everything = sh("journalctl", "--no-pager", "-o", "export").stdout
        assert SECRET not in everything
        lines = [line.read_bytes() for line in Path("/proc").glob("[0-9]*/cmdline")]
        assert not any(SECRET.encode() in line for line in lines)
    finally:
        sh("podrun", "down", "web")
    left = [
        file for file in Path("/run/podrun").rglob("*") if file.is_file() and SECRET in file.read_text(errors="replace")
    ]
    assert not left
