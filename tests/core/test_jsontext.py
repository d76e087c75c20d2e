"""JSON without the json module: the same values and texts as with it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podrun import jsontext

values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(),
        st.text(st.characters(categories=["Cs"]), max_size=3),
    ),
    lambda below: st.one_of(st.lists(below), st.dictionaries(st.text(), below)),
)


@given(values)
def test_a_value_is_written_as_json_writes_it(value: Any) -> None:
    assert jsontext.dumps(value) == json.dumps(value, separators=(",", ":"))


@given(values, st.sampled_from([None, 0, 3, "\t"]), st.booleans())
def test_a_text_is_read_as_json_reads_it(value: Any, indent: Any, plain: Any) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=plain)
    assert jsontext.loads(f"\r\n\t {text} \n") == json.loads(text)


@given(st.text(st.sampled_from('{}[]",:\\u0e-.1truefalsn \n\x00')))
def test_a_text_is_refused_exactly_when_json_refuses_it(text: Any) -> None:
    try:
        value = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError):
            jsontext.loads(text)
    else:
        assert jsontext.loads(text) == value


@pytest.mark.parametrize(
    "text",
    ["", " ", "{", "[1,]", "{1:2}", "'a'", "01", "+1", "1 2", '"\n"', '"\\ud800', "[1}", "nul", "\ufeff1", '{"a":1}x'],
)
def test_what_is_not_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        jsontext.loads(text)


@pytest.mark.parametrize("number", [math.inf, -math.inf])
def test_infinity_survives(number: Any) -> None:
    assert jsontext.loads(jsontext.dumps([number])) == [number]


def test_nan_survives() -> None:
    assert math.isnan(jsontext.loads(jsontext.dumps(math.nan)))


def test_a_record_is_an_array_and_the_last_of_equal_keys_wins() -> None:
    assert jsontext.dumps({"a": (1, (2, "x"))}) == '{"a":[1,[2,"x"]]}'
    assert jsontext.loads('{"a":1,"a":2}') == {"a": 2}


@pytest.mark.parametrize("value", [{1, 2}, b"x", object(), {"a": [1j]}])
def test_what_json_cannot_say_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError):
        jsontext.dumps(value)


def test_another_python_is_served_by_json_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsontext, "_scan", None)
    assert jsontext.loads(' {"a":[1,null]}\n') == {"a": [1, None]}
    assert jsontext.dumps({"a": [1, None]}) == '{"a":[1,null]}'


def test_neither_json_nor_re_is_imported() -> None:
    script = "import sys; from podrun import jsontext as j; j.loads(j.dumps({'a': [1.5, 'x']})); print(*sys.modules)"
    root = Path(jsontext.__file__).parents[1]
    command = [sys.executable, "-S", "-c", script]
    done = run(command, check=False, capture_output=True, text=True, env={"PYTHONPATH": str(root)})
    assert "podrun.jsontext" in done.stdout, done.stderr
    assert not {"json", "json.decoder", "re"}.intersection(done.stdout.split())
