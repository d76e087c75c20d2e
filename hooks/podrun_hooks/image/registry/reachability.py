"""Checks that an image's registry accepts connections, before a start depends on it."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

from podrun.errors import UNAVAILABLE
from podrun.hook import Problem

#: The host of docker.io's API.
_DOCKER = "registry-1.docker.io"
#: Seconds.
_PATIENCE = 3.0


def problems(registry: str) -> list[Problem]:
    """A warning if ``registry`` (host[:port]) accepts no connection. Behind a proxy it does not check."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return []
    where = urlsplit(f"//{_DOCKER if registry == 'docker.io' else registry}")
    try:
        socket.create_connection((where.hostname or "", where.port or 443), _PATIENCE).close()
    except OSError as error:
        what = f"registry {registry} does not answer: {error.strerror or error}"
        hint = "the image has to be pulled; is the name right?"
        return [Problem(what, UNAVAILABLE, hint, fatal=False, key="ref")]
    return []
