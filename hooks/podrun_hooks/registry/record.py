"""What a record of the registry is: its fields, its JSON, and which addresses no record may lead to.

Version 1, at ``/podrun/v1/svc/<service>/<id>``::

    {"v":1,"id":"web.register@host1","service":"web","host":"host1","addr":"192.0.2.1","port":8080,"proto":"tcp",
     "ready":true,"gen":"<invocation>","boot_id":"...","unit":"web","meta":{"weight":"3"}}
"""

from __future__ import annotations

import _socket

from podrun import jsontext
from podrun.hook import Wrong
from podrun.options import whole
from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 1
#: The most bytes of one record, and the most records of one service.
LARGEST, MOST = 16384, 256
PREFIX = "/podrun/v1/svc/"

_SERVICE = "abcdefghijklmnopqrstuvwxyz0123456789-."
_ID = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.@+"
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}


class Record(NamedTuple):
    """One instance of a service."""

    id: str
    service: str
    host: str
    #: An IPv4 or IPv6 address as inet_pton(3) reads it.
    addr: str
    port: int
    proto: str = "tcp"
    #: False: registered, but no client is to be sent there (yet, or because its live probe fails).
    ready: bool = False
    #: The pod's invocation: tells a pod's own record from its successor's.
    gen: str = ""
    boot_id: str = ""
    #: The pod's name.
    unit: str = ""
    meta: dict[str, str] = {}

    @property
    def key(self) -> str:
        """Where it is in a registry with keys."""
        return f"{PREFIX}{self.service}/{self.id}"

    @property
    def text(self) -> str:
        """Its JSON, on one line."""
        return jsontext.dumps({"v": VERSION, **self._asdict()})

    @property
    def weight(self) -> int:
        """``meta.weight`` from 1 to 100; 1 when it is missing or invalid."""
        return min(whole(self.meta.get("weight", "")) or 1, 100)


def service_name(text: str) -> str:
    """A service's name; raises Wrong."""
    if not text or text.strip(_SERVICE) or text[0] in "-." or len(text) > 63:
        raise Wrong(f"expected a service name of [a-z0-9.-], not {text!r}")
    return text


def parse(text: str | bytes) -> Record:
    """Parses a record, which anybody may have written. Raises Wrong: not JSON, another version, a wrong type.

    Fields that version 1 does not have are ignored.
    """
    if len(text) > LARGEST:
        raise Wrong(f"larger than {LARGEST} bytes")
    try:
        table = jsontext.loads(text.decode() if isinstance(text, bytes) else text)
    except (ValueError, RecursionError):
        raise Wrong("not JSON") from None
    if not isinstance(table, dict):
        raise Wrong("not a JSON object")
    if table.get("v") != VERSION:
        raise Wrong(f"version {table.get('v')!r} instead of {VERSION}")
    service_name(_text(table, "service"))
    identity = _text(table, "id")
    if not identity or identity.strip(_ID) or identity[0] == "." or len(identity) > 200:
        raise Wrong(f"id {identity!r}")
    addr, port, proto = _text(table, "addr"), table.get("port"), table.get("proto", "tcp")
    try:
        packed(addr)
    except OSError:
        raise Wrong(f"addr {addr!r} is not an IP address") from None
    if type(port) is not int or not 0 < port < 65536:
        raise Wrong(f"port {port!r}")
    if type(proto) is not str or proto not in PROTOCOLS:
        raise Wrong(f"proto {proto!r}")
    if type(table.get("ready")) is not bool:
        raise Wrong("ready is neither true nor false")
    meta = table.get("meta", {})
    if not isinstance(meta, dict) or not all(isinstance(value, str) for value in meta.values()):
        raise Wrong("meta is not a table of strings")
    more = {key: _text(table, key, "") for key in ("host", "gen", "boot_id", "unit")}
    return Record(identity, table["service"], more["host"], addr, port, proto, table["ready"], more["gen"],
                  more["boot_id"], more["unit"], meta)  # fmt: skip


def _text(table: dict[str, Any], key: str, default: str | None = None) -> str:
    value = table.get(key, default)
    if type(value) is not str or len(value) > 255 or not value.isprintable():
        raise Wrong(f"{key} is not a line of text")
    return value


def packed(address: str) -> bytes:
    """The 4 or 16 bytes of an address, in network order; raises OSError."""
    return _socket.inet_pton(_socket.AF_INET6 if ":" in address else _socket.AF_INET, address)


def unwanted(address: str) -> str:
    """Why no record may lead to ``address`` ("loopback", ...), or "".

    A record that led to loopback or to 169.254.169.254 would make its readers call themselves, or the cloud's metadata
    service, in the name of whoever wrote it.
    """
    raw = packed(address)
    if len(raw) == 16:
        if raw[:12] == bytes(10) + b"\xff\xff":
            return unwanted(_socket.inet_ntop(_socket.AF_INET, raw[12:])) or "an IPv4 address in an IPv6 one"
        if raw in (bytes(16), bytes(15) + b"\1"):
            return "unspecified" if raw == bytes(16) else "loopback"
        if raw[0] == 0xFF:
            return "multicast"
        return "link-local" if raw[0] == 0xFE and raw[1] & 0xC0 == 0x80 else ""
    if raw[0] in (0, 127):
        return "loopback" if raw[0] else "unspecified"
    if raw[:2] == b"\xa9\xfe":
        return "link-local"
    if raw[0] >= 224:
        return "multicast" if raw[0] < 240 else "reserved"
    return ""
