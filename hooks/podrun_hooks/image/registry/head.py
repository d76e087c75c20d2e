"""The single request of a pull that finds nothing to do: to which digest does the registry resolve a tag now?

Importing an HTTP client takes longer than the request. So this speaks just enough HTTP/1.1 for a registry that answers
directly. In all other cases (authentication, redirects, proxies, errors) client.py takes over.
"""

from __future__ import annotations

import os
import time

from podrun_hooks.image import reference
from podrun_hooks.image.reference import Reference
from podrun_hooks.image.registry import config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TIMEOUT = 10.0
_LONGEST = 1 << 16
_ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)


def digest(named: Reference) -> str:
    """The digest ("sha256:...") that the registry gives for a tag; "" if one plain request does not obtain it."""
    places = config.endpoints(config.load(), named)
    proxied = any(key.lower() in ("http_proxy", "https_proxy") for key in os.environ)
    # docker.io always requires a token first.
    if len(places) > 1 or places[0].ca or places[0].insecure or proxied or named.registry == "docker.io":
        return ""
    request = (
        f"HEAD /v2/{named.repository}/manifests/{named.digest or named.tag} HTTP/1.1\r\nHost: {named.registry}\r\n"
        f"Accept: {_ACCEPT}\r\nUser-Agent: podrun\r\nConnection: close\r\n\r\n"
    )
    try:
        answer = _ask(named.registry, request.encode("ascii"))
    except (OSError, ValueError):
        return ""
    status, _, headers = answer.partition(b"\r\n")
    if status.split(b" ")[1:2] != [b"200"] or not headers:
        return ""
    for line in headers.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"docker-content-digest":
            text = value.strip().decode("ascii", "replace")
            return text if reference.is_digest(text) else ""
    return ""


def _ask(registry: str, request: bytes) -> bytes:
    """Status line and headers of the answer. Raises OSError."""
    plain = config.is_loopback(registry)
    host, _, port = registry.rpartition(":") if not registry.endswith("]") and ":" in registry else (registry, "", "")
    host, number = host.strip("[]"), int(port or (80 if plain else 443))
    until = time.monotonic() + _TIMEOUT
    connection: Any
    if plain:
        connection = _connected(host, number)
    else:
        import socket
        import ssl

        connection = socket.create_connection((host, number), _TIMEOUT)
    try:
        if not plain:
            connection = ssl.create_default_context().wrap_socket(connection, server_hostname=host)
        connection.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer and len(answer) < _LONGEST:
            # A socket's timeout applies to each call, so shorten it to what is left of the deadline.
            connection.settimeout(max(0.001, until - time.monotonic()))
            piece = connection.recv(_LONGEST)
            if not piece:
                return b""
            answer += piece
        return answer.partition(b"\r\n\r\n")[0]
    finally:
        connection.close()


def _connected(host: str, port: int) -> Any:
    """Connects as socket.create_connection() does. Importing ``socket`` builds enums, and a host name as text loads the
    IDNA codec: that would take 8 ms."""
    import _socket

    refused: OSError | None = None
    for family, kind, protocol, _, address in _socket.getaddrinfo(host.encode("ascii"), port, 0, _socket.SOCK_STREAM):
        connection = _socket.socket(family, kind, protocol)
        try:
            connection.settimeout(_TIMEOUT)
            connection.connect(address)
            return connection
        except OSError as error:
            refused = error
            connection.close()
    raise refused or OSError(f"{host} has no address")
