"""JSON text on the start path: the standard library's C scanner and encoder, without json's ``re`` (5 ms to import)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class _Context:
    """The settings that the C scanner reads: those of json.JSONDecoder()."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    memo: dict[str, str] = {}

    @staticmethod
    def parse_constant(name: str) -> float:
        return {"-Infinity": float("-inf"), "Infinity": float("inf"), "NaN": float("nan")}[name]


def _refuse(value: object) -> None:
    raise TypeError(f"{type(value).__name__} is not JSON")


_scan: Any
try:
    import _json

    _scan = _json.make_scanner(_Context)  # type: ignore[arg-type]  # typeshed names the wrong parameter
    _encode = _json.make_encoder(None, _refuse, _json.encode_basestring_ascii, None, ":", ",", False, False, True)
except (ImportError, AttributeError, TypeError):  # another Python, or a later CPython with another signature
    _scan = None


def loads(text: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text; ``pairs`` makes the value of an object. Raises ValueError for what is not JSON."""
    if _scan is None:
        import json

        return json.loads(text, object_pairs_hook=pairs)
    text = text.strip(" \t\r\n")
    scan = _scan if pairs is None else _scanner(pairs)
    try:
        value, end = scan(text, 0)
    except StopIteration:
        raise ValueError("not JSON") from None
    if end != len(text):
        raise ValueError(f"not JSON: something follows at character {end}")
    return value


def _scanner(pairs: Callable[[list[tuple[str, Any]]], Any]) -> Any:
    context = _Context()
    context.object_pairs_hook = pairs  # type: ignore[assignment]
    return _json.make_scanner(context)  # type: ignore[arg-type]


def dumps(value: Any) -> str:
    """Compact ASCII JSON of a value made of dict, list, tuple, str, int, float, bool and None."""
    if _scan is None:
        import json

        return json.dumps(value, separators=(",", ":"))
    return "".join(_encode(value, 0))
