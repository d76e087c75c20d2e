"""Which registry an option means: "file:", "etcd://host:2379,other:2379", "consul://host:8500", or a table with TLS."""

from __future__ import annotations

import os

from podrun import host_defaults
from podrun.errors import WRONG_FILE, Failure
from podrun.hook import Kind, Wrong
from podrun.options import whole
from podrun.record import NamedTuple
from podrun_hooks.support import trusted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from podrun.hook import Problem

#: Schemes with a server: kind, default port, TLS.
_SERVERS = {
    "etcd": ("etcd", 2379, False), "etcds": ("etcd", 2379, True),
    "consul": ("consul", 8500, False), "consuls": ("consul", 8501, True),
}  # fmt: skip
_TABLE = ("url", "ca", "cert", "key", "user", "password")


class Source(NamedTuple):
    """A registry. ``kind`` "": the default one; "file", "etcd" or "consul"."""

    kind: str = ""
    #: For "file": its directory, "" for the one of the run directory.
    directory: str = ""
    #: Pairs of host and port, tried in turn.
    endpoints: tuple[tuple[str, int], ...] = ()
    tls: bool = False
    #: Paths of PEM files.
    ca: str = ""
    cert: str = ""
    key: str = ""
    user: str = ""
    #: The path of the file with the password (Consul: the token), or "credential:NAME" (systemd.exec(5)).
    password: str = ""

    @property
    def url(self) -> str:
        """As people write it."""
        if self.kind not in ("etcd", "consul"):
            return f"file:{self.directory}"
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.endpoints)
        return f"{self.kind}{'s' * self.tls}://{hosts}"

    @property
    def has_server(self) -> bool:
        """True for a registry that is reached over the network, and has to be followed."""
        return self.kind in ("etcd", "consul")

    @property
    def identity(self) -> str:
        """Identifies a registry and the user that podrun is there; part of file names."""
        from _blake2 import blake2s

        words = [self.url, self.ca, self.cert, self.user, self.password]
        return blake2s("\0".join(words).encode(), digest_size=8).hexdigest()


def parse(value: Any) -> Source:
    """Reads the option: a string, or a table with ``url`` and what TLS and users need. Raises Wrong."""
    table: Mapping[str, Any] = {"url": value} if isinstance(value, str) else value
    if not isinstance(table, dict):
        raise Wrong("expected a URL, or a table with url, ca, cert, key, user and password")
    for key, text in table.items():
        if key not in _TABLE:
            from podrun.hook import unknown

            raise Wrong(unknown(key, _TABLE), (key,))
        if type(text) is not str or not text.isprintable():
            raise Wrong(f"{key}: expected a line of text", (key,))
    if "url" not in table:
        raise Wrong("url is missing")
    found = _of_url(table["url"])
    rest = {key: table[key] for key in _TABLE[1:] if key in table}
    for key in ("ca", "cert", "key"):
        if rest.get(key) and not rest[key].startswith("/"):
            raise Wrong(f"{key}: expected an absolute path, not {rest[key]!r}", (key,))
    password = rest.get("password", "/")
    credential = password.removeprefix("credential:")
    if not password.startswith("/") and (credential in ("", password) or "/" in credential):
        raise Wrong("password: expected the absolute path of a file, or credential:NAME", ("password",))
    if rest and not found.has_server:
        raise Wrong(f"{next(iter(rest))}: only a registry with a server has one", (next(iter(rest)),))
    if bool(rest.get("cert")) != bool(rest.get("key")):
        raise Wrong("cert and key belong together", ("cert",))
    if not found.tls and any(rest.get(key) for key in ("ca", "cert")):
        raise Wrong(f"ca and cert are for {found.kind}s://", ("url",))
    return found._replace(**rest)


def _of_url(text: str) -> Source:
    if not text:
        return Source()
    scheme, colon, where = text.partition(":")
    if scheme == "file" and colon:
        if where and (not where.startswith("/") or ".." in where.split("/")):
            raise Wrong(f"expected an absolute path after file:, not {where!r}")
        return Source("file", where)
    if scheme not in _SERVERS or not where.startswith("//"):
        raise Wrong(f"expected file:, file:/directory, etcd://host, etcds://, consul:// or consuls://, not {text!r}")
    kind, port, tls = _SERVERS[scheme]
    ends = tuple(_endpoint(word, port, text) for word in where[2:].rstrip("/").split(","))
    return Source(kind, "", ends, tls)


def _endpoint(word: str, default: int, text: str) -> tuple[str, int]:
    if "@" in word:
        raise Wrong("a name and password do not belong in the URL: user = ..., password = '/path'")
    host, _, port = word.partition("]") if word.startswith("[") else (word, "", "")
    if word.startswith("["):
        host, port = host[1:], port.removeprefix(":")
    else:
        host, _, port = word.partition(":")
    named = host.replace("-", "a").replace(".", "a").replace("_", "a").replace(":", "a")
    if not (named.isascii() and named.isalnum()) or len(host) > 253:
        raise Wrong(f"{host!r} is not a host in {text!r}")
    number = whole(port, 65535) if port else default
    if not number:
        raise Wrong(f"{port!r} is not a port in {text!r}")
    return host, number


REGISTRY: Kind[Source] = Kind(
    parse,
    {
        "anyOf": [
            {"type": "string", "pattern": "^(|file:.*|(etcd|consul)s?://.+)$"},
            {
                "type": "object",
                "additionalProperties": False,
                "properties": {key: {"type": "string"} for key in _TABLE},
                "required": ["url"],
            },
        ],
        "examples": ["file:", "etcd://10.0.0.1:2379,10.0.0.2:2379", "consul://127.0.0.1:8500"],
    },
)


def resolved(source: Source, run: str) -> Source:
    """The registry that is meant: the host's default one for "", with the directory and the credential's path."""
    if not source.kind:
        source = default()
    if source.kind == "file" and not source.directory:
        return source._replace(directory=f"{run}/registry")
    if source.kind == "file":
        try:
            # Other users could forge records, which every reader believes, or have root write through a link of theirs.
            return source._replace(directory=trusted.place(source.directory, "/var/lib/podrun", strict=False))
        except FileNotFoundError:
            return source  # nothing is made there: problems() says so
    if source.password.startswith("credential:"):
        directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
        name = source.password.removeprefix("credential:")
        if not directory:
            raise Failure(
                f"the password is credential:{name}, but podrun was given no credentials",
                code=WRONG_FILE,
                hint=f"LoadCredential={name}:/path in [service], or password = '/path'",
                key="registry",
            )
        return source._replace(password=f"{directory}/{name}")
    return source


def default() -> Source:
    """``[defaults] registry`` of this host, else the file registry."""
    value = defaults("registry").get("registry", "file:")
    try:
        return parse(value)
    except Wrong as wrong:
        raise Failure(f"{host_defaults.path()}: registry: {wrong.what}", code=WRONG_FILE) from None


def defaults(word: str) -> dict[str, Any]:
    """``[defaults]`` of this host, where ``word`` is among them. Raises Failure: not TOML, or not root's alone."""
    return host_defaults.read(host_defaults.path(), word)


def problems(wanted: Source, run: str) -> list[Problem]:
    """Why a step cannot use the registry that its option means. A directory that the option names has to be root's."""
    from podrun.hook import Problem

    try:
        source = resolved(wanted, run)
    except Failure as failure:
        return [Problem(failure.what, failure.code, failure.hint, key="registry")]
    found = [
        Problem(f"there is no {key} at {path}", WRONG_FILE, key="registry")
        for key, path in (("ca", source.ca), ("cert", source.cert), ("key", source.key), ("password", source.password))
        if path and not os.path.isfile(path)
    ]
    directory = source.directory if source.directory != f"{run}/registry" else ""
    if directory and not os.path.isdir(directory):
        what = f"there is no registry at {directory}"
        found.append(Problem(what, WRONG_FILE, "create the directory", key="registry"))
    return found


def to_json(source: Source) -> dict[str, Any]:
    """As a wish holds it."""
    return source._asdict()


_kept: dict[Source, Source] = {}


def from_json(table: Mapping[str, Any]) -> Source:
    """The Source of :func:`to_json`."""
    ends = tuple((str(host), int(port)) for host, port in table["endpoints"])
    source = Source(**{**table, "endpoints": ends})
    # One object for all pods of a host: the follower has hundreds of wishes, and 12 MB.
    return _kept.setdefault(source, source)
