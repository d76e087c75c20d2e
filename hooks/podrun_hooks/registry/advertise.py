"""Which address and port a record gives out: the published ones, because a pod's own mean nothing on another host."""

from __future__ import annotations

import _socket

from podrun.errors import UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook import Wrong
from podrun_hooks.registry import source as sources
from podrun_hooks.registry.record import packed, unwanted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from podrun.hook import Facts
    from podrun_hooks.registry.source import Source

#: Nothing is sent there (RFC 5737): it only makes the kernel choose a route.
_ELSEWHERE = ("192.0.2.1", 9)


def wanted(text: str) -> str:
    """The option: "published", "pod", an IP address, or "" for what fits the registry. Raises Wrong."""
    if text not in ("", "published", "pod"):
        try:
            packed(text)
        except OSError:
            raise Wrong(f"expected 'published', 'pod' or an IP address, not {text!r}") from None
    return text


def place(advertise: str, port: int, proto: str, facts: Facts, source: Source) -> tuple[str, int]:
    """The address and port that others call. Raises Failure (WRONG_FILE) where there is none."""
    published = [
        one
        for one in facts.get("published") or ()
        if one["port"] == port and one["proto"] == proto and not one["ip"].startswith("127.")
    ]
    outer = published[0]["host"] if published else port
    own = [text.partition("/")[0] for text in facts.get("addresses") or ()]
    if advertise not in ("", "published", "pod"):
        return advertise, outer
    if advertise == "pod":
        if not own:
            raise Failure("the pod has no address of its own", code=WRONG_FILE, key="advertise")
        return own[0], port
    if published:
        ip = published[0]["ip"]
        return (of_host(source) if ip in ("0.0.0.0", "::") else ip), outer
    if not advertise and facts.get("netns") == "host":
        return of_host(source), port
    if not advertise and not source.has_server:
        return (own[0] if own else "127.0.0.1"), port
    raise Failure(
        f"port {port} is published on no address that another host could call",
        code=WRONG_FILE,
        hint=f"publish = ['0.0.0.0:{port}:{port}'] in the network step, or advertise = 'pod' where pods are routed",
        key="advertise",
    )


def of_host(source: Source) -> str:
    """The machine's address: ``[defaults] advertise``, else that from which it reaches the registry, or the world."""
    given = sources.defaults("advertise").get("advertise")
    if given:
        try:
            packed(str(given))
        except OSError:
            raise Failure(f"[defaults] advertise: {given!r} is not an IP address", code=WRONG_FILE) from None
        return str(given)
    for target in (*source.endpoints, _ELSEWHERE):
        try:
            family, _, _, _, address = _socket.getaddrinfo(target[0].encode(), target[1], 0, _socket.SOCK_DGRAM)[0]
            sock = _socket.socket(family, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        except OSError:
            continue
        try:
            sock.connect(address)
            found: str = sock.getsockname()[0]
        except OSError:
            continue
        finally:
            sock.close()
        if not unwanted(found):
            return found
    raise Failure(
        "cannot tell which address of this host others should call",
        code=UNAVAILABLE,
        hint='advertise = "192.0.2.1", here or in [defaults] of podrun.toml',
        key="advertise",
    )
