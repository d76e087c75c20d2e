"""How registries are reached: registries.toml, one table per registry (docs/reference/images.md)."""

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

#: Where the file is, and the environment variable that names another one.
PATH = "/etc/podrun/registries.toml"
VARIABLE = "PODRUN_REGISTRIES"


def location(text: str) -> tuple[str, str]:
    """ "host:5000/cache" as ("host:5000", "cache"); Wrong for what no image reference could start with."""
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
    """A place that has a repository, and how it is spoken to."""

    #: host[:port] as people write it: "docker.io".
    registry: str
    repository: str
    insecure: bool = False
    ca: str = ""


def load(environ: Mapping[str, str] = os.environ) -> dict[str, Registry]:
    """The registries of the file, by host[:port]; {} without one.

    Raises Failure: WRONG_FILE, or NOT_ALLOWED for a file that others can write: it says who is trusted.
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
    """A repository at a registry, spoken to as the file says."""
    own: Any = known.get(registry)
    return Endpoint(registry, repository, own.insecure, own.ca) if own else Endpoint(registry, repository)


def endpoints(known: Mapping[str, Registry], named: Reference) -> list[Endpoint]:
    """Where an image may be had, in the order in which it is asked for: the mirrors, then the registry itself."""
    found = []
    for mirror in known[named.registry].mirrors if named.registry in known else []:
        host, prefix = location(mirror)
        found.append(endpoint(known, host, f"{prefix}/{named.repository}".lstrip("/")))
    return [*found, endpoint(known, named.registry, named.repository)]


def is_loopback(registry: str) -> bool:
    """Whether a registry's host[:port] is this machine, where plain HTTP is allowed."""
    import _socket

    # Also the network location of a URL, which may have a name and a password in front.
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
