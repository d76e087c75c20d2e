"""The declaration of a hook's options: what each kind accepts, what it says of the rest, and its schema."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from podrun.facts import merged
from podrun.options import (
    ABSOLUTE,
    ANYTHING,
    BOOLEAN,
    DURATION,
    INTEGER,
    PORT,
    SIZE,
    TEXT,
    Wrong,
    checked,
    choice,
    list_of,
    option,
    read,
    record,
    schema_of,
    table_of,
)
from podrun.record import NamedTuple


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("20s", 20),
        ("20", 20),
        (" 20 s ", 20),
        ("1min 30s", 90),
        ("1min30s", 90),
        ("2h 5 minutes", 7500),
        ("1d 1w", 691200),
        ("500ms", 0.5),
        ("250us", 0.00025),
        ("1.5s", 1.5),
        ("0", 0),
        ("infinity", float("inf")),
        (20, 20),
        (0.25, 0.25),
    ],
)
def test_a_duration_is_spelled_as_systemd_does(text: Any, seconds: Any) -> None:
    assert DURATION.parse(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "s",
        "20x",
        "20s x",
        "x 20s",
        "-1s",
        "1..5s",
        "1,5s",
        "٣s",
        "1e3",
        "20 parsecs",
        -1,
        True,
        None,
        [],
        {},
        10**400,
        float("nan"),
        float("inf"),
    ],
)
def test_what_is_not_a_duration_is_refused(value: Any) -> None:
    with pytest.raises(Wrong, match="expected a time span"):
        DURATION.parse(value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("1K", 1024),
        ("256M", 268435456),
        ("1.5G", 1610612736),
        ("2t", 2 << 40),
        ("1P", 1 << 50),
        ("1E", 1 << 60),
        ("9007199254740993", 9007199254740993),
        (4096, 4096),
    ],
)
def test_a_size_is_spelled_as_systemd_does(text: int | str, size: Any) -> None:
    assert SIZE.parse(text) == size


@pytest.mark.parametrize(
    "value",
    ["", "M", "MB", "5MB", "-5M", "5 M", "1.2.3M", ".", "²", "5²", "²M", "9" * 400, "inf", -1, 1.5, True, None, []],
)
def test_what_is_not_a_size_is_refused(value: Any) -> None:
    with pytest.raises(Wrong, match="expected a size"):
        SIZE.parse(value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (TEXT, "x"),
        (TEXT, ""),
        (INTEGER, -5),
        (BOOLEAN, False),
        (PORT, 1),
        (PORT, 65535),
        (ABSOLUTE, "/"),
        (ABSOLUTE, "/a b/..c"),
        (ANYTHING, {"a": [1]}),
        (choice("a", "b"), "b"),
        (list_of(PORT), []),
        (list_of(PORT), [80, 443]),
        (table_of(TEXT), {"A": "1", "": ""}),
    ],
)
def test_a_right_value_is_itself(kind: Any, value: Any) -> None:
    assert kind.parse(value) == value
    jsonschema.validate(value, kind.schema)


@pytest.mark.parametrize(
    ("kind", "value", "what", "where"),
    [
        (TEXT, 5, "expected a string, not an integer", ()),
        (TEXT, "a\0b", "a NUL character cannot be part of a string here", ()),
        (INTEGER, True, "expected an integer, not a boolean", ()),
        (INTEGER, 1.0, "expected an integer, not a float", ()),
        (BOOLEAN, "yes", "expected true or false, not a string", ()),
        (PORT, 0, "expected a port from 1 to 65535, not 0", ()),
        (PORT, 70000, "expected a port from 1 to 65535, not 70000", ()),
        (PORT, True, "expected a port from 1 to 65535, not True", ()),
        (PORT, "80", "expected a port from 1 to 65535, not '80'", ()),
        (ABSOLUTE, "a/b", "expected an absolute path, not 'a/b'", ()),
        (ABSOLUTE, "", "expected an absolute path, not ''", ()),
        (ABSOLUTE, "/a/../b", "'..' is not allowed in '/a/../b'", ()),
        (ABSOLUTE, "/..", "'..' is not allowed in '/..'", ()),
        (ABSOLUTE, 5, "expected a string, not an integer", ()),
        (choice("a", "b"), "c", "expected one of a, b, not 'c'", ()),
        (choice("a", "b"), ["a"], "expected one of a, b, not ['a']", ()),
        (list_of(TEXT), "a", "expected an array, not a string", ()),
        (list_of(TEXT), ["a", {}], "expected a string, not a table", (1,)),
        (list_of(list_of(PORT)), [[1], [1, 0]], "expected a port from 1 to 65535, not 0", (1, 1)),
        (table_of(TEXT), [], "expected a table, not an array", ()),
        (table_of(TEXT), {"A": "1", "B": 2}, "B: expected a string, not an integer", ("B",)),
        (table_of(list_of(TEXT)), {"A": ["x", 2]}, "A: expected a string, not an integer", ("A", 1)),
    ],
)
def test_a_wrong_value_is_told_with_its_place_in_the_value(kind: Any, value: Any, what: str, where: Any) -> None:
    with pytest.raises(Wrong) as caught:
        kind.parse(value)
    assert (caught.value.what, caught.value.where) == (what, where)


class Ready(NamedTuple):
    """How readiness is found out."""

    http: str = option(TEXT, "a path to ask for", "")
    timeout: float = option(DURATION, "how long to try", 30.0)


def _even(value: int) -> int:
    if value % 2:
        raise Wrong(f"{value} is odd")
    return value * 10


class Options(NamedTuple):
    """Some options."""

    service: str = option(TEXT, "the service's name")
    ports: list[int] = option(list_of(PORT), "its ports", ())
    even: int = option(checked(INTEGER, _even, {"multipleOf": 2}), "an even number", 0)
    ready: Ready | None = option(record(Ready), "when it is ready", None)
    extra: list[Ready] = option(list_of(record(Ready)), "more of these", ())


def test_a_table_becomes_a_record_with_its_defaults() -> None:
    assert read(Options, {"service": "web"}) == Options("web", (), 0, None, ())
    assert read(Options, {"service": "web", "even": 4, "ready": {"timeout": "1min"}}) == Options(
        "web", (), 40, Ready("", 60.0), ()
    )


@pytest.mark.parametrize(
    ("table", "what", "where"),
    [
        ({}, "service is missing", ()),
        ({"servce": "x"}, "unknown key 'servce'; did you mean 'service'?", ("servce",)),
        ({"service": "x", "zzz": 1}, "unknown key 'zzz' (known: service, ports, even, ready, extra)", ("zzz",)),
        ({"service": 5}, "service: expected a string, not an integer", ("service",)),
        ({"service": "x", "ports": [80, 0]}, "ports: expected a port from 1 to 65535, not 0", ("ports", 1)),
        ({"service": "x", "even": 3}, "even: 3 is odd", ("even",)),
        ({"service": "x", "even": "3"}, "even: expected an integer, not a string", ("even",)),
        ({"service": "x", "ready": 1}, "ready: expected a table, not an integer", ("ready",)),
        ({"service": "x", "ready": {"htp": 1}}, "unknown key 'htp'; did you mean 'http'?", ("ready", "htp")),
        ({"service": "x", "ready": {"http": 1}}, "http: expected a string, not an integer", ("ready", "http")),
        ({"service": "x", "extra": [{}, {"http": 1}]}, "http: expected a string, not an integer", ("extra", 1, "http")),
        ("x", "expected a table, not a string", ()),
        (None, "expected a table, not NoneType", ()),
    ],
)
def test_a_wrong_table_is_told_with_the_place_of_what_is_wrong(table: Any, what: str, where: Any) -> None:
    with pytest.raises(Wrong) as caught:
        read(Options, table)
    assert (caught.value.what, caught.value.where) == (what, where)


def test_the_schema_says_what_the_declaration_says() -> None:
    schema = schema_of(Options)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["required"] == ["service"]
    assert schema["properties"]["ports"]["description"] == "its ports"
    assert schema["properties"]["ready"]["properties"]["http"] == {"type": "string", "description": "a path to ask for"}
    jsonschema.validate({"service": "x", "ports": [80], "even": 2, "ready": {"timeout": "1s"}}, schema)
    for wrong in ({}, {"service": "x", "ports": [0]}, {"service": "x", "even": 3}, {"service": "x", "new": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ([], {}),
        ([{"env": ["A=1"]}, {"env": ["B=2"]}], {"env": ["A=1", "B=2"]}),
        ([{"images": {"a": 1}}, {"images": {"b": 2}}], {"images": {"a": 1, "b": 2}}),
        ([{"images": {"a": {"x": 1}}}, {"images": {"a": {"y": 2}}}], {"images": {"a": {"y": 2}}}),
        ([{"netns": "host"}, {"netns": "/run/netns/x"}], {"netns": "/run/netns/x"}),
        ([{"env": ["A=1"]}, {"env": "odd"}], {"env": "odd"}),
    ],
)
def test_facts_of_several_steps_are_merged(parts: Any, whole: Any) -> None:
    copies = [dict(part) for part in parts]
    assert merged(parts) == whole
    assert parts == copies
