"""What a record may be: whoever wrote it, its readers come to no harm."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from podrun.options import Wrong
from podrun_hooks.registry import file
from podrun_hooks.registry.record import LARGEST, Record, parse, unwanted

GOOD = {"v": 1, "id": "web.register@h", "service": "web", "addr": "192.0.2.1", "port": 80, "ready": True}


def test_a_record_is_read_as_it_was_written() -> None:
    record = Record("web.register@h", "web", "h", "2001:db8::1", 8080, "udp", True, "g", "b", "web", {"weight": "3"})
    assert parse(record.text) == record
    assert parse(json.dumps({**GOOD, "of a later minor version": [1]})).addr == "192.0.2.1"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"v": 2}, "version 2 instead of 1"),
        ({"v": None}, "version None"),
        ({"service": "../../etc"}, "expected a service name"),
        ({"service": 5}, "service is not a line"),
        ({"id": "../x"}, "id '../x'"),
        ({"id": ".hidden"}, "id '.hidden'"),
        ({"id": "a/b"}, "id 'a/b'"),
        ({"id": ""}, "id ''"),
        ({"addr": "192.0.2.1; drop"}, "is not an IP address"),
        ({"addr": "db.example"}, "is not an IP address"),
        ({"addr": "1.2.3"}, "is not an IP address"),
        ({"addr": ["192.0.2.1"]}, "addr is not a line"),
        ({"port": 0}, "port 0"),
        ({"port": 65536}, "port 65536"),
        ({"port": "80"}, "port '80'"),
        ({"port": True}, "port True"),
        ({"proto": "icmp"}, "proto 'icmp'"),
        ({"proto": ["tcp"]}, "proto"),
        ({"ready": "yes"}, "ready is neither"),
        ({"meta": {"weight": 3}}, "meta is not"),
        ({"meta": ["x"]}, "meta is not"),
        ({"host": "a\nb"}, "host is not a line"),
        ({"gen": "g" * 300}, "gen is not a line"),
    ],
)
def test_what_is_no_record_of_this_version_is_refused_with_why(change: Any, why: str) -> None:
    with pytest.raises(Wrong, match=why):
        parse(json.dumps({**GOOD, **change}))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "[" * 5000, "\xff", "{}" + " " * LARGEST, b"\xff\xfe"])
def test_what_is_no_json_object_is_refused(text: Any) -> None:
    with pytest.raises(Wrong):
        parse(text)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("169.254.169.254", "link-local"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.250", "multicast"),
        ("255.255.255.255", "reserved"),
        ("240.0.0.1", "reserved"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("fe80::1", "link-local"),
        ("febf::1", "link-local"),
        ("ff02::1", "multicast"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:192.0.2.1", "an IPv4 address in an IPv6 one"),
        ("192.0.2.1", ""),
        ("10.0.0.1", ""),
        ("2001:db8::1", ""),
        ("fd00::1", ""),
    ],
)
def test_some_addresses_are_nobodys_backend(address: str, why: str) -> None:
    assert unwanted(address) == why


@pytest.mark.parametrize(
    ("word", "weight"),
    [
        ("3", 3), ("007", 7), ("", 1), ("0", 1), ("-1", 1), ("x", 1), ("1e9", 1), ("99", 99), ("1000", 100), ("٣", 1),
        ("9" * 5000, 1), ("0" * 5000, 1),
    ],
    ids=lambda value: str(value)[:5],
)  # fmt: skip
def test_a_weight_is_from_1_to_100(word: str, weight: int) -> None:
    assert Record("a", "web", "h", "192.0.2.1", 80, meta={"weight": word}).weight == weight


def test_the_file_registry_passes_over_what_is_no_record_and_says_so(tmp_path: Path) -> None:
    service = tmp_path / "web"
    service.mkdir()
    good = Record("good", "web", "h", "192.0.2.1", 80, ready=True)
    file.put(str(tmp_path), good)
    (service / "half.json").write_text('{"v":1,')
    (service / "large.json").write_text(" " * 10_000_000)
    (service / "another.json").write_text(good.text)
    (service / "link.json").symlink_to("/etc/passwd")
    (service / "directory.json").mkdir()
    os.mkfifo(service / "fifo.json")
    wrong: list[str] = []
    assert file.records(str(tmp_path), "web", wrong=wrong) == [good]
    assert sorted(line.partition(":")[0].rpartition("/")[2] for line in wrong) == [
        "another.json", "directory.json", "fifo.json", "half.json", "large.json", "link.json",
    ]  # fmt: skip
