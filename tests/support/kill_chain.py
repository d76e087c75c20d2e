"""The chain of the kill tests: a step of every kind."""

from __future__ import annotations

import subprocess
from pathlib import Path

CHAIN = """
[pod]
stop_timeout = "2s"

[[chain]]
hook = "image"
ref = "host:"
background = true

[[chain]]
hook = "storage"
source = "tmpfs:"
target = "/scratch"

[[chain]]
hook = "storage"
name = "disk"
source = "{home}/disk.squashfs"
type = "squashfs"
target = "/opt/disk"

[[chain]]
hook = "storage"
name = "files"
source = "image:dir:{home}/content"
target = "/opt/files"

[[chain]]
hook = "storage"
name = "secret"
source = "file:"
content = "s3cret"
target = "/opt/secret"

[[chain]]
hook = "network"
publish = ["127.0.0.1:{port}:80"]

[[chain]]
hook = "network"
name = "second"
bridge = "{second}"

[[chain]]
hook = "container"
name = "db"
command = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done"]

[[chain]]
hook = "container"
name = "app"
command = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done"]
ready = {{ exec = ["true"] }}

[[chain]]
hook = "register"
service = "web"
port = 80

[[chain]]
hook = "exec:{hook}"
"""


def loops(home: Path) -> list[str]:
    """The loop devices of files below a directory."""
    listed = subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(home) in line]
