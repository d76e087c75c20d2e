"""Hooks of the OCI runtime for the containers after it: those in hooks.d directories, and those that the step names.

The files are those of oci-hooks(5), which podman and CRI-O read. Their conditions are about the container, so they
travel with the hooks as ``when``: alternatives, of which one has to hold. The container step asks :func:`applies`.
"""

from __future__ import annotations

import os

from podrun import jsontext
from podrun.errors import WRONG_FILE, Failure
from podrun.hook import Problem
from podrun.options import ABSOLUTE, TEXT, Kind, Wrong, checked, choice, list_of, option, read, record
from podrun.record import NamedTuple
from podrun_hooks.support import trusted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from podrun.hook import Facts, Step

takes: Sequence[str] = ()
gives: Sequence[str] = ("hooks",)
resident = False
default_name = ""

#: The directories of packages and of the administrator; of two files with one name, that in the later directory wins.
DIRECTORIES = ("/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d")
#: The moments in a container's life, in their order ("POSIX-platform Hooks" of the runtime specification).
STAGES = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_CONDITIONS = ("always", "annotations", "commands", "hasBindMounts")


def _seconds(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise Wrong(f"expected whole seconds, at least 1, not {value!r}")
    return value


def _assignment(text: str) -> str:
    if "=" not in text[1:]:
        raise Wrong(f"expected NAME=VALUE, not {text!r}")
    return text


def _some(stages: list[str]) -> list[str]:
    if not stages:
        raise Wrong(f"expected some of {', '.join(STAGES)}")
    return stages


class Entry(NamedTuple):
    """One hook, as the runtime specification spells it, and when it is called."""

    path: str = option(ABSOLUTE, "the executable; of startContainer it is one in the container")
    stages: list[str] = option(checked(list_of(choice(*STAGES)), _some), "the moments at which it is called")
    args: list[str] | None = option(list_of(TEXT), "its arguments, the first one being its own name", None)
    env: list[str] = option(list_of(checked(TEXT, _assignment)), "all of its environment, as NAME=VALUE", [])
    timeout: int | None = option(Kind(_seconds, {"type": "integer", "minimum": 1}), "seconds it may take", None)


class Options(NamedTuple):
    """Where hooks are looked for, and hooks."""

    directories: list[str] | None = option(
        list_of(ABSOLUTE), "hooks.d directories, the later one wins; default: podman's, where hooks says nothing", None
    )
    hooks: list[Entry] = option(list_of(record(Entry)), "hooks that every container after it gets", [])


def up(step: Step, facts: Facts) -> Facts:
    """Facts: the hooks, in the order of their files' names; those that the step itself names come last."""
    found = _all(step.options)
    return {"hooks": found} if found else {}


def down(step: Step, own: Facts) -> None:
    """Nothing to undo: hooks are the runtime's, and go with the container."""


def check(step: Step) -> list[Problem]:
    """Finds directories, files and executables that are missing or that other users than root can change."""
    options: Options = step.options
    for directory in options.directories or ():
        if not os.path.isdir(directory):
            return [Problem(f"there is no directory {directory}", WRONG_FILE, key="directories")]
    for key, found in (("directories", _of_files), ("hooks", _of_step)):
        try:
            found(options)
        except Failure as failure:
            return [Problem(failure.what, failure.code, failure.hint, key=key)]
    return []


def explain(step: Step) -> list[str]:
    """The resulting hooks in the runtime's configuration."""
    return [f"# config.json: hooks.{hook['hookName']}: {jsontext.dumps(hook)}" for hook in _all(step.options)]


def applies(when: Sequence[Mapping[str, Any]], command: str, annotations: Mapping[str, str], *, binds: bool) -> bool:
    """Whether one of the alternatives holds for a container.

    ``command``: its first argument; ``binds``: it was given directories or files of the host.
    """
    return any(_holds(one, command, annotations, binds) for one in when)


def _holds(when: Mapping[str, Any], command: str, annotations: Mapping[str, str], binds: bool) -> bool:
    # A condition that is false never holds, as podman reads it.
    if when.get("always") is False or not (binds and when["hasBindMounts"] if "hasBindMounts" in when else True):
        return False
    for key, value in when.get("annotations", {}).items():
        if not any(_fits(key, name) and _fits(value, text) for name, text in annotations.items()):
            return False
    return "commands" not in when or any(_fits(pattern, command) for pattern in when["commands"])


#: Character classes of POSIX extended regular expressions, which Python's do not have.
_CLASSES = {
    "alnum": "a-zA-Z0-9", "alpha": "a-zA-Z", "blank": " \\t", "digit": "0-9", "lower": "a-z", "space": "\\s",
    "upper": "A-Z", "xdigit": "0-9a-fA-F", "punct": "!-/:-@\\[-`{-~",
}  # fmt: skip


def _fits(pattern: str, text: str) -> bool:
    """Whether a POSIX extended regular expression matches somewhere. Raises Failure for an invalid one."""
    import re

    for name, members in _CLASSES.items():
        pattern = pattern.replace(f"[:{name}:]", members)
    try:
        return re.search(pattern, text) is not None
    except (re.error, OverflowError, RecursionError) as error:
        raise Failure(f"{pattern!r} is not a regular expression: {error}", code=WRONG_FILE) from None


def _all(options: Options) -> list[Facts]:
    return [*_of_files(options), *_of_step(options)]


# --- hooks.d --------------------------------------------------------------------------------------------------------


def _of_files(options: Options) -> list[Facts]:
    """The hooks of the directories' files, as facts. Raises Failure."""
    directories = options.directories
    if directories is None:
        directories = [] if options.hooks else list(DIRECTORIES)
    return [hook for path in _files(directories) for hook in _of_file(path)]


def _of_step(options: Options) -> list[Facts]:
    """The hooks that the step itself names."""
    return [hook for entry in options.hooks for hook in _facts(_believed(entry))]


def _files(directories: Sequence[str]) -> list[str]:
    """The files that count, in their order: by name, whatever the case of its letters."""
    found: dict[str, str] = {}
    for directory in directories:
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            continue
        found.update({name: f"{directory}/{name}" for name in names if name.endswith(".json")})
    return [found[name] for name in sorted(found, key=lambda name: (name.lower(), name))]


def _of_file(path: str) -> list[Facts]:
    try:
        told = jsontext.loads(trusted.text(path, DIRECTORIES[-1]))
        entry, when = _current(told) if isinstance(told, dict) and "version" in told else _first(told)
        entry = _believed(entry)
    except FileNotFoundError:
        raise Failure(f"{path} is a dangling link", code=WRONG_FILE) from None
    except (Wrong, ValueError, RecursionError) as error:
        raise Failure(f"{path}: {error}", code=WRONG_FILE, hint="see oci-hooks(5)") from None
    except Failure as failure:
        what = failure.what if failure.what.startswith(path) else f"{path}: {failure.what}"
        raise Failure(what, code=failure.code, hint=failure.hint) from None
    return [{**hook, "when": when} for hook in _facts(entry)]


def _current(told: Mapping[str, Any]) -> tuple[Entry, list[Facts]]:
    """The entry of a file and its condition. Raises Wrong."""
    if told["version"] != "1.0.0":
        raise Wrong(f"version {told['version']!r}: 1.0.0 is known, and files without a version")
    when = told.get("when")
    if not isinstance(when, dict) or not when:
        raise Wrong("when: expected a table of conditions")
    return _entry(told.get("hook"), told), [{key: _condition(key, value) for key, value in when.items()}]


def _first(told: Any) -> tuple[Entry, list[Facts]]:
    """The same for the format without a version, in which each condition alone is enough."""
    if not isinstance(told, dict):
        raise Wrong("expected a JSON object")
    known = {key.lower(): value for key, value in told.items()}
    hook = {"path": known.get("hook")}
    if "arguments" in known:
        hook["args"] = [known["hook"], *list_of(TEXT).parse(known["arguments"])]
    when: list[Facts] = []
    # Each is enough, so each is an alternative.
    for name, synonym in (("cmds", "cmd"), ("annotations", "annotation")):
        for pattern in list_of(TEXT).parse(known.get(name, known.get(synonym, []))):
            when.append({"commands": [pattern]} if name == "cmds" else {"annotations": {"": pattern}})
    if known.get("hasbindmounts") is True:
        when.append({"hasBindMounts": True})
    return _entry(hook, {"stages": known.get("stages", known.get("stage"))}), when


def _entry(hook: Any, told: Mapping[str, Any]) -> Entry:
    if not isinstance(hook, dict):
        raise Wrong("hook: expected an object")
    known = {key: hook[key] for key in ("path", "args", "env", "timeout") if hook.get(key) is not None}
    if "precreate" in (told.get("stages") or ()):
        raise Wrong("stages: precreate, which rewrites the container's configuration, is podman's own")
    entry: Entry = read(Entry, {**known, "stages": told.get("stages")})
    return entry


def _condition(name: str, value: Any) -> Any:
    if name not in _CONDITIONS:
        raise Wrong(f"when: unknown condition {name!r} (known: {', '.join(_CONDITIONS)})")
    if name in ("always", "hasBindMounts"):
        if not isinstance(value, bool):
            raise Wrong(f"when: {name}: expected true or false")
        return value
    words = [*value, *value.values()] if name == "annotations" and isinstance(value, dict) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise Wrong(f"when: {name}: expected regular expressions")
    for word in words:
        _fits(word, "")
    return value


def _believed(entry: Entry) -> Entry:
    """The entry with the path that root may run: without links, and changed by nobody else. Raises Failure."""
    if set(entry.stages) == {"startContainer"}:
        return entry  # it is looked up in the container
    try:
        path = trusted.place(entry.path, "/usr/libexec/oci/hooks.d")
    except FileNotFoundError:
        path = ""
    if not os.path.isfile(path) or not os.access(path, os.X_OK):
        raise Failure(f"there is no executable {entry.path}", code=WRONG_FILE)
    # One program may have several names, and ask which of them it was called by.
    return entry._replace(path=path, args=entry.args or ([entry.path] if path != entry.path else None))


def _facts(entry: Entry) -> list[Facts]:
    table = {"path": entry.path, "args": entry.args, "env": entry.env or None, "timeout": entry.timeout}
    hook = {key: value for key, value in table.items() if value is not None}
    return [{"hookName": stage, **hook} for stage in entry.stages]
