"""The place of a key in a TOML text."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from podrun.podfile.position import locate

TEXT = (
    '''# a comment with [[chain]]
[pod] # x = 1
name = "a]#"

[[chain]]
hook = "x"
publish = [ "a", # c ]
  "b", ["c", {d.e = 1, "f g" = """
x""""" }] ]
[chain.ready]
http.x = 1979-05-27 07:32:00
[[chain]]
hook="""
[[chain]]"""
"k\\u0041" = 'it'''
    + """ isn\\'
[[chain.deep.list]]
a = 1
[[chain.deep.list]]
a = '''
#'''
  [ "chain" . "last" ]
b = []
"""
)


@pytest.mark.parametrize(
    ("where", "place"),
    [
        (("pod",), (2, 2)),
        (("pod", "name"), (3, 1)),
        (("chain",), (5, 3)),
        (("chain", 0), (5, 1)),
        (("chain", 0, "publish"), (7, 1)),
        (("chain", 0, "publish", 1), (8, 3)),
        (("chain", 0, "publish", 2, 1, "d", "e"), (8, 17)),
        (("chain", 0, "publish", 2, 1, "f g"), (8, 24)),
        (("chain", 0, "ready", "http", "x"), (11, 6)),
        (("chain", 1), (12, 1)),
        (("chain", 1, "hook"), (13, 1)),
        (("chain", 1, "kA"), (15, 1)),
        (("chain", 1, "deep", "list", 1), (18, 1)),
        (("chain", 1, "deep", "list", 1, "a"), (19, 1)),
        (("chain", 1, "last", "b"), (22, 1)),
        (("chain", 0, "publish", 9), (7, 1)),
        (("chain", 1, "hook", "x"), (13, 1)),
        (("chain", 7, "hook"), (5, 3)),
        (("nothing",), (1, 1)),
        ((), (1, 1)),
    ],
)
def test_a_key_is_found_or_its_nearest_ancestor(where: Any, place: Any) -> None:
    text = TEXT.replace("'it isn\\'", '"it isn\'t"')
    tomllib.loads(text)
    assert locate(text, where) == place


# --- generated documents: a writer that notes where it writes what --------------------------------------------------

keys = st.sampled_from(["a", "b", "long-key", "0", "é", "x.y", "q\"'", "", "\n#["])
scalars = st.one_of(
    st.integers(-5, 10**6),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.datetimes(),
    st.text(st.sampled_from("ab\"'\\#[]{}=,.\n \té"), max_size=12),
)
values = st.recursive(
    scalars,
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(keys, below, max_size=3)),
    max_leaves=8,
)
tables = st.dictionaries(
    keys, st.one_of(values, st.lists(st.dictionaries(keys, values, max_size=3), min_size=1, max_size=3)), max_size=4
)


class Writer:
    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.text = ""
        self.places = {}

    def choose(self, *words: Any) -> Any:
        return self.draw(st.sampled_from(words))

    def note(self, path: Any) -> None:
        self.places.setdefault(path, (self.text.count("\n") + 1, len(self.text) - self.text.rfind("\n")))

    def key(self, path: Any, word: Any) -> None:
        self.note((*path, word))
        bare = word and all(c.isascii() and (c.isalnum() or c in "_-") for c in word)
        if bare and self.choose(True, False):
            self.text += word
        elif "'" not in word and "\n" not in word and self.choose(True, False):
            self.text += f"'{word}'"
        else:
            self.text += _basic(word)

    def gap(self) -> None:
        self.text += self.choose("", " ", "\n", "# ]}\"'\n", "\r\n\t")

    def value(self, path: Any, value: Any) -> None:
        if isinstance(value, list):
            self.text += "["
            for index, item in enumerate(value):
                self.gap()
                self.note((*path, index))
                self.value((*path, index), item)
                self.gap()
                if index < len(value) - 1 or self.choose(True, False):
                    self.text += ","
            self.gap()
            self.text += "]"
        elif isinstance(value, dict):
            self.text += "{"
            for index, (word, item) in enumerate(value.items()):
                self.text += self.choose("", " ", "\t") if not index else ", "
                self.pair(path, word, item)
            self.text += "}"
        elif isinstance(value, bool):
            self.text += "true" if value else "false"
        elif isinstance(value, str):
            self.string(value)
        else:
            self.text += value.isoformat(self.choose("T", " ")) if hasattr(value, "isoformat") else _number(value)

    def string(self, value: Any) -> None:
        style = self.choose("basic", "literal", "lines", "literal lines")
        if style == "literal" and not {"'", "\n"} & set(value):
            self.text += f"'{value}'"
        elif style == "lines":
            safe = value.replace("\\", "\\\\").replace('"""', '""\\"')
            self.text += f'"""\n{safe}"""'
        elif style == "literal lines" and "'''" not in value:
            self.text += f"'''\n{value}'''"
        else:
            self.text += _basic(value)

    def pair(self, path: Any, word: Any, value: Any) -> None:
        self.key(path, word)
        while isinstance(value, dict) and len(value) == 1 and self.choose(True, False):
            self.text += self.choose(".", " . ")
            path, (word, value) = (*path, word), next(iter(value.items()))
            self.key(path, word)
        self.text += self.choose("=", " = ", "= ")
        self.value((*path, word), value)

    def pairs(self, path: Any, table: Any) -> None:
        for word, value in table.items():
            self.pair(path, word, value)
            self.text += self.choose("\n", " # x = [\n", "\r\n", "\n\n  ")

    def document(self, tables: Any) -> None:
        plain = {word: value for word, value in tables.items() if not self.has_header(value)}
        self.pairs((), plain)
        for word, value in tables.items():
            if word in plain:
                continue
            for index, table in enumerate(value if isinstance(value, list) else [value]):
                brackets = 2 if isinstance(value, list) else 1
                if brackets == 2:
                    self.note((word, index))
                self.text += "[" * brackets
                self.key((), word)
                self.text += "]" * brackets + self.choose("\n", "  # [x]\n")
                below = (word, index) if brackets == 2 else (word,)
                apart = [key for key, item in table.items() if isinstance(item, dict) and self.choose(True, False)]
                self.pairs(below, {key: item for key, item in table.items() if key not in apart})
                for key in apart:
                    self.text += "["
                    self.key((), word)
                    self.text += "."
                    self.key(below, key)
                    self.text += "]\n"
                    self.pairs((*below, key), table[key])

    def has_header(self, value: Any) -> Any:
        tables = isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
        return (tables or isinstance(value, dict)) and self.choose(True, False)


def _basic(text: Any) -> Any:
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\u{ord(c):04x}" for c in text) + '"'


def _number(value: Any) -> Any:
    return repr(value)


@st.composite
def documents(draw: Any) -> Any:
    tables_ = draw(tables)
    writer = Writer(draw)
    writer.document(tables_)
    return tables_, writer.text, writer.places


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(documents())
def test_every_key_of_any_document_is_found(document: Any) -> None:
    meant, text, places = document
    assert tomllib.loads(text) == meant
    for where, place in places.items():
        assert locate(text, where) == place


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(documents(), st.lists(st.one_of(keys, st.integers(0, 3)), max_size=5))
def test_a_place_is_always_inside_the_document(document: Any, where: Any) -> None:
    line, column = locate(document[1], tuple(where))
    lines = document[1].split("\n")
    assert 1 <= line <= len(lines)
    assert 1 <= column <= len(lines[line - 1]) + 1
