"""Reads registries.toml, which says how registries are reached: one table per registry (docs/reference/images.md)."""

from __future__ import annotations

import os

from podrun.errors import WRONG_FILE, Failure
from podrun.options import ABSOLUTE, BOOLEAN, TEXT, Wrong, checked, list_of, option, read, record, table_of
from podrun.record import NamedTuple
from podrun_hooks.image import reference
from podrun_hooks.image.reference import Reference
from podrun_hooks.support import trusted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: The path of the file, and the environment variable that names another one.
PATH = "/etc/podrun/registries.toml"
VARIABLE = "PODRUN_REGISTRIES"


def location(text: str) -> tuple[str, str]:
    """Splits "host:5000/cache" into ("host:5000", "cache"). Raises Wrong if no image reference could start so."""
    host, _, prefix = text.partition("/")
    try:
        named = reference.parse(f"{text}/any/image")
    except Failure:
        named = None
    if named is None or named.registry != host or f"{prefix}/any/image".lstrip("/") != named.repository:
        raise Wrong(f"expected a registry such as 'registry.example:5000', not {text!r}")
    return host, prefix


def _mirror(text: str) -> str:
    location(text)
    return text


def _signatures(text: str) -> str:
    if not text.startswith(("https://", "http://", "file:///")):
        raise Wrong(f"expected a URL of https, http or file, not {text!r}")
    return text.rstrip("/")


class Registry(NamedTuple):
    """The table of one registry."""

    mirrors: list[str] = option(
        list_of(checked(TEXT, _mirror)),
        "host[:port][/prefix] of registries that have the same images: asked first, in this order",
        [],
    )
    insecure: bool = option(
        BOOLEAN, "its TLS certificate is not checked, and where it has no TLS plain HTTP is spoken", False
    )
    ca: str = option(ABSOLUTE, "a PEM file with certificate authorities, besides those of the system", "")
    signatures: str = option(
        checked(TEXT, _signatures), "the URL (https, http, file) below which its images' signatures are", ""
    )


class _File(NamedTuple):
    registry: dict[str, Registry] = option(table_of(record(Registry)), "one table per registry, by host[:port]", {})


class Endpoint(NamedTuple):
    """A registry that has a repository, and the settings to reach it with."""

    #: host[:port] as people write it: "docker.io".
    registry: str
    repository: str
    insecure: bool = False
    ca: str = ""


def load(environ: Mapping[str, str] = os.environ) -> dict[str, Registry]:
    """The registries in the file, by host[:port]; {} if there is no file.

    Raises Failure: WRONG_FILE, or NOT_ALLOWED for a file that other users can write, since it says whom to trust.
    """
    path = environ.get(VARIABLE) or PATH
    try:
        text = trusted.text(path, "/etc/podrun")
    except FileNotFoundError:
        if not environ.get(VARIABLE):
            return {}
        raise Failure(f"{path} ({VARIABLE}) is not there", code=WRONG_FILE) from None
    import tomllib

    try:
        found: _File = read(_File, tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise Failure(f"{path}: {error}", code=WRONG_FILE) from None
    except Wrong as wrong:
        raise Failure(f"{path}: {'.'.join(map(str, wrong.where))}: {wrong.what}", code=WRONG_FILE) from None
    for host in found.registry:
        try:
            prefix = location(host)[1]
        except Wrong as wrong:
            raise Failure(f"{path}: {wrong.what}", code=WRONG_FILE) from None
        if prefix:
            raise Failure(f"{path}: {host!r}: a table is for a whole registry", code=WRONG_FILE)
    return dict(found.registry)


def endpoint(known: Mapping[str, Registry], registry: str, repository: str) -> Endpoint:
    """A repository at a registry, with the registry's settings from the file."""
    own: Any = known.get(registry)
    return Endpoint(registry, repository, own.insecure, own.ca) if own else Endpoint(registry, repository)


def endpoints(known: Mapping[str, Registry], named: Reference) -> list[Endpoint]:
    """The places to pull an image from, in the order in which they are tried: the mirrors, then the registry itself."""
    mirrors = []
    for mirror in known[named.registry].mirrors if named.registry in known else []:
        host, prefix = location(mirror)
        mirrors.append(endpoint(known, host, f"{prefix}/{named.repository}".lstrip("/")))
    return [*mirrors, endpoint(known, named.registry, named.repository)]


def is_loopback(registry: str) -> bool:
    """Whether a registry's host[:port] is this machine, where plain HTTP is allowed."""
    import _socket

    # The argument may be the network location of a URL, which can start with user and password.
    host = registry.rpartition("@")[2].lower()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
        family, start = _socket.AF_INET6, bytes(15) + b"\1"
    else:
        host = host.partition(":")[0]
        family, start = _socket.AF_INET, b"\x7f"
        if host == "localhost" or host.endswith(".localhost"):
            return True
    try:
        return _socket.inet_pton(family, host).startswith(start)
    except (OSError, ValueError):
        return False
