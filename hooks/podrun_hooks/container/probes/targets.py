"""What a probe connects to, as a pod file spells it: ":80", "127.0.0.1:80/healthz", "http://[::1]:80/"."""

from __future__ import annotations

from podrun.options import Wrong, whole
from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Target(NamedTuple):
    """What a probe connects to. ``hosts`` "": every own address."""

    host: str
    port: int
    path: str

    def hosts(self, addresses: Sequence[str]) -> list[str]:
        """What is tried, in order: the one host, else the loopback addresses and the pod's own (CIDR, or without)."""
        return [self.host] if self.host else ["127.0.0.1", "::1", *(text.partition("/")[0] for text in addresses)]


def target(text: str) -> Target:
    """Reads ":80", "127.0.0.1:80", "[::1]:80" or ":80/healthz", "http://" in front allowed; raises Wrong."""
    authority, slash, path = text.removeprefix("http://").partition("/")
    host, _, port = authority.rpartition(":")
    number = whole(port, 65535)
    if ":" not in authority or not number:
        raise Wrong(f"expected HOST:PORT or :PORT, for http with a /PATH, not {text!r}")
    if not all(" " < letter < "\x7f" for letter in path + host):
        raise Wrong(f"{text!r}: a space or a letter beyond ASCII has to be escaped with %")
    return Target(host.strip("[]"), number, slash + path or "/")
