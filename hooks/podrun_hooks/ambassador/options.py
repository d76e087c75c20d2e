"""The options of an ambassador step."""

from __future__ import annotations

import os

from podrun.hook import DURATION, PORT, TEXT, Wrong, checked, choice, option
from podrun.record import NamedTuple
from podrun_hooks.registry.record import packed, service_name, unwanted
from podrun_hooks.registry.source import REGISTRY, Source


def _address(text: str) -> str:
    if not text:
        return text
    try:
        raw = packed(text)
    except OSError:
        raise Wrong(f"expected an IPv4 address, not {text!r}") from None
    if len(raw) != 4 or unwanted(text) not in ("", "loopback"):
        raise Wrong(f"expected an IPv4 address for the pod to call, not {text!r}")
    return text


def _directory(text: str) -> str:
    if text and (not text.startswith("/") or text != os.path.normpath(text) or text == "/" or not text.isprintable()):
        raise Wrong(f"expected an absolute path, not {text!r}")
    return text


def _prefix(text: str) -> str:
    if text and not (text.replace("_", "a").isalnum() and text.isascii() and not text[0].isdigit()):
        raise Wrong(f"expected letters, digits and _, not {text!r}")
    return text


class Options(NamedTuple):
    """An address in the pod that leads to wherever a service is."""

    service: str = option(checked(TEXT, service_name), "the service, as others register it")
    port: int = option(PORT, "the port that the pod calls")
    proto: str = option(choice("tcp", "udp", "sctp"), "its transport", "tcp")
    registry: Source = option(REGISTRY, "where the service is registered; default: as for register", Source())
    via: str = option(choice("nft", "haproxy"), "nft: a map, no process; haproxy: the pod's own HAProxy", "nft")
    mode: str = option(choice("tcp", "http"), "http, with haproxy: it repeats requests when a backend dies", "tcp")
    hold: float = option(DURATION, "how long clients are held without a backend before they are refused", 60.0)
    drain: float = option(DURATION, "haproxy: on stop, how long open connections may go on", 0.0)
    address: str = option(
        checked(TEXT, _address),
        "where the pod finds the service; default: one of 198.18.0.0/24 (haproxy: 127.0.0.1)",
        "",
    )
    balance: str = option(
        choice("random", "source"),
        "several backends: a random one, or the same for a client's address",
        "random",
    )
    backends: str = option(
        checked(TEXT, _directory),
        "a directory in the containers with a file SERVICE: a line for each backend, kept up to date",
        "",
    )
    env_prefix: str = option(checked(TEXT, _prefix), "prefix of the variables; default: the service's name", "")
