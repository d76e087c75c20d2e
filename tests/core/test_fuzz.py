"""Mutated input of every kind that podrun reads from others: a moment of each in ./dev test, 10^6 by ``./dev prove fuzz``."""

from __future__ import annotations

import os
import time

import pytest

from support import fuzz

#: Rounds that broke once: (target, what was read). What the corpus is to become, not what it is now.
FOUND = [
    ("etcd", b'{"kvs": [{"key": true}]}'),
    ("etcd", b'{"header": {"revision": "9"}, "kvs": [{"key": "", "value": ""}]}'),
    ("etcd", b'{"header": {"revision": "9"}, "responses": [{"response_range": {"count": "READY=1"}}]}'),
    ("etcd", b'{"header": {"revision": "9"}, "kvs": 1, "responses": 1}'),
    ("consul", b"1"),
    ("consul", b"[{}]"),
    ("consul", b'{"db": ["a"],"consul": []}'),
    ("journal", b"\xff\n"),
    ("journal", b'{"v":1}\n{"n":0,"at":"up"}\n[]\n' + b"[" * 3000 + b"\n"),
    ("rtnetlink", b"\0" * 16),
    ("http", b"HTTP/1.1 \xb200 OK\r\nContent-Length: 2\r\n\r\n{}"),  # a digit to str.isdigit(), not to int()
    ("http", b"HTTP/1.1 200 OK\r\nContent-Length: \xb9\r\n\r\n{}"),
    ("http", b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n{}"),  # int() takes 4,300 digits
    ("http", b"HTTP/1.1 2" + b"0" * 5000 + b" OK\r\nContent-Length: 2\r\n\r\n{}"),
    ("journal", b'{"v":1}\n{"n":0,"at":"starting","step":{}}\n{"n":"0","at":"starting","step":{}}\n'),
    ("journal", b'{"v":1,"pod":{"name":1},"segment":2,"order":"0","file":"","boot_id":"","pid":1,"start":1}\n'),
    ("nft", b"\x14\0\0\0\2\0\0\0\1\0\0\0\0\0\0\0\0\0\0\x80"),
]


@pytest.mark.parametrize(("name", "content"), FOUND, ids=str)
def test_what_broke_once_ends_with_a_value_or_a_documented_error(name: str, content: bytes) -> None:
    target = next(target for target in fuzz.targets() if target.name == name)
    try:
        target.read(content)
    except target.errors:
        pass


def _rounds(count: int, seed: int, seconds: float) -> list[str]:
    """Rounds of every target; one line for each, and for each input that is not taken well."""
    told, faults = [], []
    for target in fuzz.targets():
        began = time.monotonic()
        done, broken = fuzz.rounds(target, seed, range(count), seconds=seconds)
        took = time.monotonic() - began
        told.append(f"{target.name:12}{done:9}{done / max(took, 1e-9):9.0f}/s{len(broken):4} broken")
        print(told[-1], flush=True)
        faults += [
            f"python tests/support/fuzz.py '{one.target}' {seed} {one.number}: {type(one.error).__name__}: {one.error}: "
            f"{one.content[:200]!r}"
            for one in broken
        ]
    return faults


def test_mutated_input_ends_with_a_value_or_a_documented_error() -> None:
    assert not _rounds(400, seed=1, seconds=0.5)


@pytest.mark.prove
def test_fuzz_long() -> None:
    count, seed = int(os.environ.get("PODRUN_PROVE_ROUNDS", "1000000")), int(os.environ.get("PODRUN_PROVE_SEED", "1"))
    print(f"\n{count} rounds a target, seed {seed}")
    assert not (faults := _rounds(count, seed, float(os.environ.get("PODRUN_PROVE_SECONDS", "1e9")))), "\n".join(faults)
