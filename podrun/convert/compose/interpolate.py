"""Compose's interpolation: $VAR, ${VAR}, :- - :? ? :+ + with defaults that may hold variables again, and $$."""

from __future__ import annotations

from podrun.errors import WRONG_FILE, Failure

from ..draft import variable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_NAME = _FIRST | frozenset("0123456789")
_DEPTH = 20
#: Names of variables whose values belong into no pod file.
_SECRET = ("PASS", "PWD", "PW", "SECRET", "TOKEN", "CREDENTIAL", "PRIVATE", "APIKEY", "API_KEY", "ACCESS_KEY")


def is_secret(name: str) -> bool:
    """Whether a variable is called as secrets are."""
    upper = name.upper()
    words = upper.split("_")
    return any(word in upper if len(word) > 3 else word in words for word in _SECRET)


def interpolated(text: str, environ: Mapping[str, str], used: Callable[[str, str], None], *, depth: int = 0) -> str:
    """The text with its variables replaced. Raises Failure for a wrong expression or a variable that is demanded.

    A variable without a value or default is left to the start of the pod, and so is one that is called as secrets are.
    ``used`` hears of each variable and what became of it: "set", "default", "open" or "secret".
    """
    if depth > _DEPTH:
        raise Failure("variables are nested too deeply", code=WRONG_FILE)
    done, at = [], 0
    while at < len(text):
        dollar = text.find("$", at)
        if dollar < 0:
            break
        done.append(text[at:dollar])
        following = text[dollar + 1 : dollar + 2]
        if following == "$":
            done.append("$")
            at = dollar + 2
        elif following == "{":
            end = _end(text, dollar + 2)
            done.append(_braced(text[dollar + 2 : end], environ, used, depth))
            at = end + 1
        elif following in _FIRST and following:
            at = dollar + 1
            while at < len(text) and text[at] in _NAME:
                at += 1
            done.append(_value(text[dollar + 1 : at], environ, used))
        else:
            raise Failure(f"'$' in {text!r} does not begin a variable", code=WRONG_FILE, hint="write $$ for a plain $")
    return "".join([*done, text[at:]])


def _end(text: str, at: int) -> int:
    """Where the "}" is that belongs to a "${" before ``at``."""
    depth = 1
    while at < len(text):
        if text.startswith("${", at):
            depth += 1
            at += 1
        elif text[at] == "}":
            depth -= 1
            if not depth:
                return at
        at += 1
    raise Failure(f"'${{' without '}}' in {text!r}", code=WRONG_FILE)


def _braced(inner: str, environ: Mapping[str, str], used: Callable[[str, str], None], depth: int) -> str:
    length = next((n for n, letter in enumerate(inner) if letter not in _NAME), len(inner))
    name, rest = inner[:length], inner[length:]
    operator = rest[:2] if rest[:2] in (":-", ":?", ":+") else rest[:1]
    if not name or name[0] not in _FIRST or (rest and operator not in (":-", ":?", ":+", "-", "?", "+")):
        raise Failure(f"${{{inner}}} is not a variable", code=WRONG_FILE, hint="write $$ for a plain $")
    if not rest:
        return _value(name, environ, used)
    word = rest[len(operator) :]
    is_set = bool(environ.get(name)) if operator[0] == ":" else name in environ
    if operator[-1] == "+":
        used(name, "set" if is_set else "default")
        return interpolated(word, environ, used, depth=depth + 1) if is_set else ""
    if is_set or (operator[-1] == "?" and is_secret(name)):
        return _value(name, environ, used)
    if operator[-1] == "?":
        message = interpolated(word, environ, used, depth=depth + 1) or "is required"
        raise Failure(f"the variable {name} is not set: {message}", code=WRONG_FILE, hint="set it, or --env-file FILE")
    used(name, "default")
    return interpolated(word, environ, used, depth=depth + 1)


def _value(name: str, environ: Mapping[str, str], used: Callable[[str, str], None]) -> str:
    if is_secret(name):
        used(name, "secret")
        return variable(name)
    if name in environ:
        used(name, "set")
        return environ[name]
    used(name, "open")
    return variable(name)


def dotenv(text: str, name: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of a .env file: comments, export, quotes, and variables in values that are not single-quoted."""
    values: dict[str, str] = {}
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        line = lines[number].strip()
        number += 1
        place = f"{name}:{number}"
        line = line.removeprefix("export ").lstrip()
        if not line or line.startswith("#"):
            continue
        key, equals, rest = line.partition("=")
        key, rest = key.strip(), rest.strip()
        if not key or not _NAME.union(".-").issuperset(key):
            raise Failure(f"{place}: expected NAME=VALUE, not {line[:60]!r}", code=WRONG_FILE)
        if not equals:
            continue
        quote = rest[:1]
        if quote in ("'", '"'):
            # A quoted value may go on over several lines.
            body = rest[1:]
            while (end := _closing(body, quote)) < 0 and number < len(lines):
                body += "\n" + lines[number]
                number += 1
            if end < 0:
                raise Failure(f"{place}: a quote is not closed", code=WRONG_FILE)
            value = body[:end]
            if quote == '"':
                for written, meant in (("\\n", "\n"), ("\\t", "\t"), ("\\r", "\r"), ('\\"', '"'), ("\\\\", "\\")):
                    value = value.replace(written, meant)
        else:
            value = rest.split(" #")[0].rstrip()
        values[key] = value if quote == "'" else _plain(value, {**values, **environ})
    return values


def _closing(body: str, quote: str) -> int:
    at = 0
    while at < len(body):
        if body[at] == "\\" and quote == '"':
            at += 1
        elif body[at] == quote:
            return at
        at += 1
    return -1


def _plain(value: str, environ: Mapping[str, str]) -> str:
    """In a .env file an unset variable is empty, and every value is looked up, whatever it is called."""
    done, at = "", 0
    while (dollar := value.find("$", at)) >= 0:
        done += value[at:dollar]
        braced = value.startswith("{", dollar + 1)
        start = dollar + (2 if braced else 1)
        stop = start
        while stop < len(value) and value[stop] in _NAME:
            stop += 1
        name, at = value[start:stop], stop
        default = ""
        if braced:
            end = value.find("}", stop)
            if end < 0:
                return done + value[dollar:]
            rest, at = value[stop:end], end + 1
            default = rest.lstrip(":-") if rest.startswith((":-", "-")) else ""
        done += environ.get(name) or default if name else value[dollar:at]
    return done + value[at:]
