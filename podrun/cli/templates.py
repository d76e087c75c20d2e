"""Go templates, as ``--format`` of docker and podman takes them: the part of text/template that scripts use.

Fields and variables, pipelines, if, with and range, and the functions of FUNCTIONS. Anything else is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from podrun.errors import WRONG_FILE, Failure
from podrun.options import unknown

_ACTION = re.compile(r"\{\{(-(?=\s))?((?:\"(?:\\.|[^\"\\])*\"|`[^`]*`|[^}\"`]|\}(?!\}))*?)((?<=\s)-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:\\.|[^"\\])*"|`[^`]*`)|(?P<number>-?\d+)|(?P<path>\$?\w*(?:\.\w+)+|\.|\$\w*)"""
    r"""|(?P<word>[A-Za-z]\w*)|(?P<mark>:=|[()|,]))"""
)
_ESCAPES = {"\\t": "\t", "\\n": "\n", "\\\\": "\\"}
#: Parentheses and blocks may lie so deep in each other.
_DEEPEST = 40


class Struct(dict[str, Any]):
    """A record with the fields that docker and podman know; ``own`` holds podrun's, which a template may name, too."""

    def __init__(self, named: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> None:
        super().__init__(named)
        self.own = own or {}


class Text(str):
    """A text with fields: labels are "a=b,c=d" in docker's lists, and a map in podman's."""

    fields: Mapping[str, str]

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> Text:
        made = cls(",".join(f"{key}={value}" for key, value in fields.items()))
        made.fields = fields
        return made


class Heading(str):
    """Stands for a record when a table's headings are printed: each of its fields is its name."""

    __slots__ = ()


class _Block(NamedTuple):
    """{{if}}, {{with}} or {{range}}: its tokens, and what is between it, its {{else}} and its {{end}}."""

    word: str
    tokens: list[tuple[str, str]]
    then: list[Any]
    otherwise: list[Any]


def is_template(form: str) -> bool:
    """Whether a format is one of these rather than podrun's own."""
    return "{{" in form


def lines(form: str, records: Sequence[Any], *, heading: bool = True, kind: str = "") -> Iterator[str]:
    """What to print for records: a line each, or with "table " in front columns below headings.

    ``kind`` is what docker calls the records' ids after. Raises Failure (WRONG_FILE) for what cannot be evaluated.
    """
    whole = form.strip().startswith("table ")
    text = form.strip()[len("table ") :] if whole else form
    text = re.sub(r"\\[tn\\]", lambda match: _ESCAPES[match[0]], text)
    if whole:
        # podman makes columns of what blanks separate, docker of what tabs do.
        text = re.sub(r"\}\}[ \t]+\{\{", "}}\t{{", text)
    parsed = _parsed(text)
    if not whole:
        for record in records:
            yield _text(parsed, record)
        return
    rows = [_text(parsed, record).split("\t") for record in records]
    if heading:
        rows.insert(0, _text(parsed, Heading(kind)).split("\t"))
    columns = range(max(map(len, rows), default=0))
    widths = [max(len(row[column]) for row in rows if column < len(row)) for column in columns]
    for row in rows:
        yield "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()


def _text(parsed: list[Any], record: Any) -> str:
    return "".join(_written(parsed, record, {"$": record}))


# --- reading -------------------------------------------------------------------------------------------------------


def _wrong(what: str) -> Failure:
    return Failure(f"--format: {what}", code=WRONG_FILE)


def _parsed(text: str) -> list[Any]:
    """Texts, lists of tokens, and blocks. Raises Failure."""
    top: list[Any] = []
    open_: list[tuple[str, list[tuple[str, str]], list[Any], list[Any]]] = []
    into, at, trim = top, 0, False
    for match in _ACTION.finditer(text):
        between = text[at : match.start()]
        _refuse_rest(between)
        between = between.lstrip() if trim else between
        into.append(between.rstrip() if match[1] else between)
        at, trim = match.end(), bool(match[3])
        tokens = list(_tokens(match[2]))
        word = tokens[0][1] if tokens and tokens[0][0] == "word" else ""
        if match[2].strip().startswith("/*"):
            continue
        if not tokens:
            raise _wrong("{{}} names nothing")
        if word in ("if", "with", "range"):
            if len(open_) >= _DEEPEST:
                raise _wrong("too many blocks lie in each other")
            open_.append((word, tokens[1:], into, []))
            into = open_[-1][3]
        elif word == "else" and open_:
            kind, head, outer, then = open_[-1]
            into = []
            if len(tokens) > 1:
                raise _wrong("{{else if}} is not known: put an {{if}} into the {{else}}")
            open_[-1] = (kind, head, outer, then)
            outer.append(_Block(kind, head, then, into))
        elif word == "end" and open_:
            kind, head, outer, then = open_.pop()
            last = outer[-1] if outer else None
            if not (isinstance(last, _Block) and last.then is then):
                outer.append(_Block(kind, head, then, []))
            into = outer
        elif word in ("else", "end"):
            raise _wrong(f"{{{{{word}}}}} ends nothing")
        else:
            into.append(tokens)
    if open_:
        raise _wrong(f"{{{{{open_[-1][0]}}}}} has no {{{{end}}}}")
    rest = text[at:]
    _refuse_rest(rest)
    into.append(rest.lstrip() if trim else rest)
    return top


def _refuse_rest(text: str) -> None:
    if "{{" in text:
        raise _wrong(f"{text[text.index('{{') :][:40]!r} is not closed")


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    if text.strip().startswith("/*"):
        return
    at, before = 0, ""
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise _wrong(f"{text[at:].strip()!r} is not understood")
        kind, found = match.lastgroup, match[match.lastgroup]
        # (index .A "b").C is a field of what is in the parentheses; a blank makes it another word.
        yield "chain" if before == ")" and kind == "path" and text[at] == "." else kind, found
        at, before = match.end(), found


# --- writing -------------------------------------------------------------------------------------------------------


def _written(parsed: Sequence[Any], dot: Any, variables: dict[str, Any]) -> Iterator[str]:
    for part in parsed:
        if isinstance(part, str):
            yield part
        elif isinstance(part, _Block):
            yield from _block(part, dot, variables)
        elif part[1:2] == [("mark", ":=")] and part[0][1].startswith("$"):
            variables[part[0][1]] = _value(part[2:], dot, variables)
        else:
            yield shown(_value(part, dot, variables))


def _block(block: _Block, dot: Any, variables: dict[str, Any]) -> Iterator[str]:
    names: list[str] = []
    tokens = block.tokens
    if ("mark", ":=") in tokens:
        at = tokens.index(("mark", ":="))
        names = [text for kind, text in tokens[:at] if kind == "path"]
        tokens = tokens[at + 1 :]
    value = _value(tokens, dot, variables)
    inner = dict(variables)
    if block.word == "range":
        pairs = _pairs(value)
        for key, item in pairs:
            inner.update(zip(names, [key, item] if len(names) > 1 else [item], strict=False))
            yield from _written(block.then, item, inner)
        if not pairs:
            yield from _written(block.otherwise, dot, inner)
        return
    inner.update(dict.fromkeys(names[:1], value))
    if value:
        yield from _written(block.then, value if block.word == "with" else dot, inner)
    else:
        yield from _written(block.otherwise, dot, inner)


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    """Keys and values of what {{range}} goes over."""
    if isinstance(value, Mapping):
        return sorted((key, one) for key, one in value.items() if not callable(one))
    if value and not _is_list(value) and not isinstance(value, Heading):
        raise _wrong(f"range goes over lists and maps, not over {shown(value)!r}")
    return list(enumerate(value)) if _is_list(value) else []


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _value(tokens: Sequence[tuple[str, str]], dot: Any, variables: Mapping[str, Any], depth: int = 0) -> Any:
    """The value of a pipeline: commands with | between them, each given the one before as its last argument."""
    if depth > _DEEPEST:
        raise _wrong("too many parentheses lie in each other")
    commands: list[list[tuple[str, Any]]] = [[]]
    at = 0
    while at < len(tokens):
        kind, text = tokens[at]
        at += 1
        if kind == "mark" and text == "(":
            end = _closing(tokens, at)
            inner = _value(tokens[at:end], dot, variables, depth + 1)
            at = end + 1
            if at < len(tokens) and tokens[at][0] == "chain":
                inner = _fields(inner, tokens[at][1][1:])
                at += 1
            commands[-1].append(("value", inner))
        elif kind == "mark" and text == "|":
            commands.append([])
        elif kind == "mark":
            raise _wrong(f"{text!r} is not expected here")
        else:
            commands[-1].append((kind, text))
    before: list[Any] = []
    for command in commands:
        if not command:
            raise _wrong("a | has nothing beside it")
        before = [_call(command, before, dot, variables)]
    return before[0]


def _closing(tokens: Sequence[tuple[str, str]], at: int) -> int:
    deep = 1
    for place in range(at, len(tokens)):
        deep += {"(": 1, ")": -1}.get(tokens[place][1], 0) if tokens[place][0] == "mark" else 0
        if not deep:
            return place
    raise _wrong("a ( has no )")


def _call(command: Sequence[tuple[str, Any]], before: Sequence[Any], dot: Any, variables: Mapping[str, Any]) -> Any:
    first, *rest = command
    if first[0] == "word" and first[1] not in ("true", "false", "nil"):
        if first[1] not in FUNCTIONS:
            raise _wrong(unknown(first[1], list(FUNCTIONS), "function"))
        arguments = [*(_operand(word, dot, variables) for word in rest), *before]
        heading = next((word for word in arguments if isinstance(word, Heading)), None)
        if heading is not None:
            return heading
        try:
            return FUNCTIONS[first[1]](*arguments)
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            raise _wrong(f"{first[1]}: {error}") from None
    value = _operand(first, dot, variables)
    arguments = [*(_operand(word, dot, variables) for word in rest), *before]
    if isinstance(value, Heading):
        return Heading(arguments[0]) if arguments else value
    if callable(value):
        try:
            return value(*arguments)
        except TypeError:
            raise _wrong(f"{first[1]} takes another number of words") from None
    if arguments:
        raise _wrong(f"{shown(first[1])} takes no words")
    return value


def _operand(token: tuple[str, Any], dot: Any, variables: Mapping[str, Any]) -> Any:
    kind, text = token
    if kind == "value":
        return text
    if kind == "string":
        return text[1:-1] if text[0] == "`" else _unquoted(text)
    if kind == "number":
        return int(text)
    if kind == "word":
        if text in ("true", "false", "nil"):
            return {"true": True, "false": False}.get(text)
        return _call([token], [], dot, variables)
    start, _, path = text.partition(".")
    if start and start not in variables:
        raise _wrong(f"there is no {start!r}")
    return _fields(variables[start] if start else dot, path)


def _fields(value: Any, path: str) -> Any:
    for name in path.split(".") if path else ():
        value = _field(value, name)
    return value


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        raise _wrong(f"{text} is not a string") from None


def _field(value: Any, name: str) -> Any:
    if isinstance(value, Heading):
        named = name == "ID" or (name == "Name" and value == "VOLUME")
        return Heading(f"{value} {name}".strip().upper() if named else _HEADINGS.get(name) or _spaced(name))
    if isinstance(value, Struct):
        if name not in value and name not in value.own:
            raise _wrong(unknown(name, [*value, *value.own], "field"))
        return value[name] if name in value else value.own[name]
    if isinstance(value, (Mapping, Text)):
        return (value.fields if isinstance(value, Text) else value).get(name)
    if value is None:
        return None
    raise _wrong(f".{name}: {shown(value)!r} has no fields")


#: Docker's headings, where they are not the field's name in capitals.
_HEADINGS = {
    "CreatedSince": "CREATED", "RunningFor": "CREATED", "CPUPerc": "CPU %", "MemPerc": "MEM %", "PIDs": "PIDS",
    "MemUsage": "MEM USAGE / LIMIT", "NetIO": "NET I/O", "BlockIO": "BLOCK I/O", "IPv6": "IPV6",
}  # fmt: skip


def _spaced(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).upper()


def shown(value: Any) -> str:
    """A value as Go prints it."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return f"map[{' '.join(f'{key}:{shown(one)}' for key, one in sorted(value.items()) if not callable(one))}]"
    if _is_list(value):
        return f"[{' '.join(map(shown, value))}]"
    return str(value)


# --- functions -----------------------------------------------------------------------------------------------------


def _json(value: Any) -> str:
    return json.dumps(_plain(value), separators=(",", ":"), ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items() if not callable(one)}
    return [_plain(one) for one in value] if _is_list(value) else value


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value.fields if isinstance(value, Text) else value
        if isinstance(value, Mapping):
            value = value.get(key)
        elif not isinstance(key, int) or isinstance(key, bool) or not 0 <= key < len(value):
            raise ValueError(f"{shown(key)} is out of range")
        else:
            value = value[key]
    return value


def _printf(form: str, *values: Any) -> str:
    rest = list(values)
    kinds: dict[str, Callable[[Any], str]] = {
        "s": shown,
        "v": shown,
        "d": lambda value: str(int(value)),
        "q": lambda value: json.dumps(shown(value)),
    }

    def put(match: re.Match[str]) -> str:
        if match[2] == "%":
            return "%"
        text = kinds[match[2]](rest.pop(0))
        width = int(match[1] or 0)
        return text.ljust(-width) if width < 0 else text.rjust(width)

    return re.sub(r"%(-?\d{0,3})([svdq%])", put, form)


def _compare(test: Callable[[Any, Any], bool]) -> Callable[..., bool]:
    return lambda one, *others: any(test(one, other) for other in others)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": _json,
    "upper": lambda text: shown(text).upper(),
    "lower": lambda text: shown(text).lower(),
    "title": lambda text: re.sub(r"(^|\s)(\w)", lambda match: match[1] + match[2].upper(), shown(text)),
    "join": lambda words, by: by.join(map(shown, words)),
    "split": lambda text, by: text.split(by),
    "pad": lambda text, before, after: " " * min(before, 1000) + text + " " * min(after, 1000) if text else text,
    "truncate": lambda text, length: text[:length],
    "slice": lambda value, start=0, end=None: value[start:end],
    "len": len,
    "index": _index,
    "print": lambda *words: "".join(map(shown, words)),
    "println": lambda *words: " ".join(map(shown, words)) + "\n",
    "printf": _printf,
    "eq": _compare(lambda one, other: one == other),
    "ne": _compare(lambda one, other: one != other),
    "lt": _compare(lambda one, other: one < other),
    "le": _compare(lambda one, other: one <= other),
    "gt": _compare(lambda one, other: one > other),
    "ge": _compare(lambda one, other: one >= other),
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "or": lambda *values: next((value for value in values if value), values[-1]),
    "not": lambda value: not value,
}
