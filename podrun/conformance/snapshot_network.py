"""What the conformance kit sees of a network: links, addresses, routes, rules, and every object of nftables."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

#: What the kernel adds by itself, or counts: no hook has left it.
_BY_ITSELF = (" proto kernel ", " fe80::", " ff00::/8 ", " multicast ", "linkdown")
_COUNTED = ("handle", "counter", "quota", "expires", "index")


def listing(netns: str = "") -> set[str]:
    """The objects of this process's network, or of the one that ``ip netns`` knows as ``netns`` ("in NAME: ...")."""
    where = f"in {netns}: " if netns else ""
    return {where + item for item in (*_links(netns), *_addresses(netns), *_routes(netns), *_nft(netns))}


def _links(netns: str) -> Iterator[str]:
    for line in _lines(netns, "-o", "link"):
        # "3: eth0@if4: <...>": the other end of a veth is not part of its name.
        yield f"link {line.split(': ')[1].partition('@')[0]}"


def _addresses(netns: str) -> Iterator[str]:
    for line in _lines(netns, "-o", "address"):
        _, link, _, address = line.split()[:4]
        if not address.startswith("fe80::"):
            yield f"address {address} of {link}"


def _routes(netns: str) -> Iterator[str]:
    for family in ("-4", "-6"):
        for line in _lines(netns, family, "route", "show", "table", "all"):
            if not any(word in f" {line} " for word in _BY_ITSELF):
                yield f"route {' '.join(line.split())}"
        yield from (f"rule {' '.join(line.split())}" for line in _lines(netns, family, "rule"))


def _nft(netns: str) -> Iterator[str]:
    try:
        whole = json.loads("\n".join(_output(netns, ["nft", "-j", "list", "ruleset"])) or "{}")
    except ValueError:
        return
    for entry in whole.get("nftables", ()):
        for kind, value in entry.items():
            if kind == "metainfo":
                continue
            elements = value.pop("elem", None) or ()
            place = " ".join(str(value[key]) for key in ("family", "table", "chain", "name") if key in value)
            what = json.dumps(_uncounted(value["expr"])) if kind == "rule" else ""
            yield f"nft {kind} {place} {what}".rstrip()
            yield from (f"nft element {place} {json.dumps(_uncounted(element))}" for element in elements)


def _uncounted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _uncounted(item) for key, item in value.items() if key not in _COUNTED}
    if isinstance(value, list):
        # A rule's counter is all of its expression.
        return [left for item in value if (left := _uncounted(item)) != {}]
    return value


def _lines(netns: str, *words: str) -> list[str]:
    return [line for line in _output(netns, ["ip", *words]) if line.strip()]


def _output(netns: str, argv: list[str]) -> list[str]:
    """The lines that a command prints; none where it is not installed or fails."""
    inside = ["ip", "netns", "exec", netns] if netns else []
    try:
        done = subprocess.run([*inside, *argv], capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError:
        return []
    return done.stdout.splitlines()
