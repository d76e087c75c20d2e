"""Reads a compose project as docker compose does: files on top of each other, .env, include, extends, profiles."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from podrun.errors import WRONG_FILE, Failure

from .. import inputs, yamltext
from ..draft import Draft, Origin
from ..yamltext import Table, Tagged
from .interpolate import dotenv, interpolated

#: In docker's order.
NAMES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
_OVERRIDES = (
    "compose.override.yaml",
    "compose.override.yml",
    "docker-compose.override.yaml",
    "docker-compose.override.yml",
)
_SECTIONS = ("services", "networks", "volumes", "configs", "secrets")
_DEPTH = 20
#: Lists that the later file replaces; all others grow.
_REPLACED = frozenset({"command", "entrypoint", "test"})
#: Lists whose entries are known by a key, in either of their spellings.
_BY_KEY = frozenset({"environment", "labels", "annotations", "extra_hosts", "sysctls", "args", "driver_opts"})


class Asked(NamedTuple):
    """What the caller says of a project."""

    files: Sequence[str]
    environ: Mapping[str, str]
    project: str = ""
    profiles: Sequence[str] = ()
    env_files: Sequence[str] = ()
    #: Whether extends, include and env_file may lead out of the project's directory.
    outside: bool = False
    #: Whether all services share one bridge, where each knows the names of all.
    one_network: bool = False


class Project(NamedTuple):
    """A project, read and put together."""

    name: str
    directory: str
    services: Table
    networks: Table
    volumes: Table
    configs: Table
    secrets: Table
    #: Where variables came from that were left to the start of the pod: the path of .env, or "".
    dotenv: str
    #: The variables of the caller's environment and of the project's files.
    environ: Mapping[str, str]
    #: The profiles that are active.
    profiles: frozenset[str]


class _Reading:
    """One reading: what it has used of the environment, and which files it is in."""

    def __init__(self, asked: Asked, draft: Draft, directory: str) -> None:
        self.asked = asked
        self.draft = draft
        self.directory = directory
        self.environ: dict[str, str] = {}
        self.used: dict[str, str] = {}

    @property
    def inside(self) -> str:
        """Where files have to be."""
        return "" if self.asked.outside else self.directory

    def file(self, path: str) -> Table:
        """A compose file with its variables replaced."""
        whole: Table | None = None
        text = inputs.read(path, inside=self.inside)
        for document in yamltext.documents(text, os.path.relpath(path, self.directory)):
            if document is None:
                continue
            if not isinstance(document, Table):
                raise Failure(f"{path}: expected services, networks, volumes; this is not a mapping", code=WRONG_FILE)
            whole = document if whole is None else merged(whole, document)
        whole = whole if whole is not None else Table(path)
        self.replaced(whole, "")
        return whole

    def replaced(self, value: Any, where: str) -> Any:
        """The value with its variables replaced, keys excepted."""
        if isinstance(value, str) and "$" in value:
            try:
                return interpolated(value, self.environ, self.note_use)
            except Failure as failure:
                raise Failure(f"{where}: {failure.what}", code=failure.code, hint=failure.hint) from None
        if isinstance(value, Table):
            for key in value:
                value[key] = self.replaced(value[key], f"{value.where(key)}: {key}")
        elif isinstance(value, list):
            value[:] = [self.replaced(item, where) for item in value]
        elif isinstance(value, Tagged):
            value.value = self.replaced(value.value, where)
        return value

    def note_use(self, name: str, how: str) -> None:
        self.used[name] = how


def read(asked: Asked, draft: Draft) -> Project:
    """Reads the project. Raises Failure (WRONG_FILE)."""
    files = [os.path.abspath(file) for file in asked.files]
    if not files and asked.environ.get("COMPOSE_FILE"):
        separator = asked.environ.get("COMPOSE_PATH_SEPARATOR") or ":"
        files = [os.path.abspath(file) for file in asked.environ["COMPOSE_FILE"].split(separator)]
    elif not files:
        files = _default(os.getcwd())
    elif len(files) == 1 and os.path.isdir(files[0]):
        files = _default(files[0])
    directory = os.path.dirname(files[0])
    reading = _Reading(asked, draft, directory)
    reading.environ, path = _environment(asked, reading, directory)
    whole: Table = Table("")
    for file in files:
        whole = merged(whole, _with_included(reading, reading.file(file), file, ()))
    whole = untagged(whole)
    services = _table(whole, "services")
    for name in list(services):
        services[name] = _extended(reading, services, name, directory, ())
    for key in whole:
        if key not in (*_SECTIONS, "name", "version") and not key.startswith("x-"):
            draft.note(Origin(whole.where(key), key), "podrun has no equivalent", "see what it was for")
    _tell_variables(draft, reading, path)
    given = asked.project or reading.environ.get("COMPOSE_PROJECT_NAME") or whole.get("name")
    name = _normalised(str(given or os.path.basename(directory)))
    services, networks, volumes, configs, secrets = (_table(whole, key) for key in _SECTIONS)
    active = asked.profiles or [word for word in reading.environ.get("COMPOSE_PROFILES", "").split(",") if word]
    return Project(
        name, directory, services, networks, volumes, configs, secrets, path, reading.environ, frozenset(active)
    )


def _normalised(name: str) -> str:
    """A project's name as compose makes it of a directory's. Raises Failure when nothing is left of it."""
    plain = "".join(c for c in name.lower() if c.isascii() and (c.isalnum() or c in "_-")).lstrip("_-")
    if not plain:
        raise Failure(f"{name!r} cannot be a project's name", code=WRONG_FILE, hint="say --project-name NAME")
    return plain


def _default(directory: str) -> list[str]:
    file = next((f"{directory}/{name}" for name in NAMES if os.path.exists(f"{directory}/{name}")), None)
    if file is None:
        raise Failure(f"there is no {', '.join(NAMES)} in {directory}", code=WRONG_FILE, hint="name the file")
    override = next((f"{directory}/{name}" for name in _OVERRIDES if os.path.exists(f"{directory}/{name}")), None)
    return [file, override] if override else [file]


def _environment(asked: Asked, reading: _Reading, directory: str) -> tuple[dict[str, str], str]:
    """The variables, podrun's own environment before those of files; and the path of .env when it is there."""
    values: dict[str, str] = {}
    paths = [os.path.abspath(path) for path in asked.env_files] or [f"{directory}/.env"]
    found = ""
    for path in paths:
        if asked.env_files or os.path.exists(path):
            # A file that the command line names may be anywhere.
            text = inputs.read(path, inside="" if asked.env_files else reading.inside)
            values |= dotenv(text, path, {**values, **asked.environ})
            found = path
    return {**values, **asked.environ}, found


def _tell_variables(draft: Draft, reading: _Reading, path: str) -> None:
    def names(how: str) -> str:
        return ", ".join(sorted(name for name, what in reading.used.items() if what == how))

    where = Origin("", "variables")
    if names("set"):
        draft.note(where, f"{names('set')}: their present values are in the pod files", by_hand=False)
    if names("default"):
        draft.note(where, f"{names('default')}: not set, the defaults are in the pod files", by_hand=False)
    if names("open"):
        draft.note(
            where,
            f"{names('open')}: not set and without a default; the pod asks for it at its start",
            "set it in podrun's environment, in a unit by Environment= in [service]",
        )
    if names("secret"):
        hint = f"{path} is named as EnvironmentFile= of the units" if path else "in a unit, name an EnvironmentFile="
        draft.note(where, f"{names('secret')}: left to the start of the pod, because it may be a secret", hint)


# --- include and extends --------------------------------------------------------------------------------------------


def _with_included(reading: _Reading, table: Table, file: str, chain: tuple[str, ...]) -> Table:
    """The file with what it includes below it."""
    if file in chain or len(chain) > _DEPTH:
        raise Failure(f"{file} includes itself", code=WRONG_FILE)
    entries = table.pop("include", None) or []
    whole = Table(table.file)
    for entry in entries if isinstance(entries, list) else [entries]:
        paths = entry.get("path", []) if isinstance(entry, dict) else entry
        for path in paths if isinstance(paths, list) else [paths]:
            path = os.path.join(os.path.dirname(file), str(path))
            included = _with_included(reading, reading.file(path), path, (*chain, file))
            base = os.path.dirname(path)
            if isinstance(entry, dict) and "project_directory" in entry:
                base = os.path.join(os.path.dirname(file), str(entry["project_directory"]))
            whole = merged(whole, _rebased(included, base, reading.directory))
    return merged(whole, table)


def _extended(reading: _Reading, services: Table, name: str, directory: str, chain: tuple[str, ...]) -> Table:
    """A service with what it extends below it."""
    service = services[name]
    if service is None:
        return Table(services.file)
    if not isinstance(service, Table):
        raise Failure(f"{services.where(name)}: services.{name}: expected a mapping", code=WRONG_FILE)
    extends = service.get("extends")
    if not extends:
        return service
    origin = f"{service.where('extends')}: services.{name}.extends"
    base_name = str(extends.get("service", "")) if isinstance(extends, dict) else str(extends)
    file = str(extends.get("file") or "") if isinstance(extends, dict) else ""
    here = f"{services.file}#{name}"
    if here in chain or len(chain) > _DEPTH:
        raise Failure(f"{origin}: {base_name} extends itself", code=WRONG_FILE)
    others, base = services, directory
    if file:
        path = os.path.join(directory, file)
        base = os.path.dirname(path)
        others = _table(untagged(reading.file(path)), "services")
    if base_name not in others:
        raise Failure(f"{origin}: there is no service {base_name!r}{f' in {file}' if file else ''}", code=WRONG_FILE)
    below = _extended(reading, others, base_name, base, (*chain, here))
    below = _rebased_service(below, base, directory) if file else below
    result = merged(below, service)
    del result["extends"]
    untagged(result)
    # Compose does not take over what ties the other service to others.
    for key in ("depends_on", "links", "volumes_from"):
        if key in result and key not in service:
            reading.draft.note(Origin(origin, key), f"not taken over from {base_name}: say it here", by_hand=False)
            del result[key]
    return result


def _rebased(table: Table, base: str, directory: str) -> Table:
    """An included file whose relative paths start from the project's directory."""
    for service in (table.get("services") or {}).values():
        if isinstance(service, Table):
            _rebased_service(service, base, directory)
    for section in ("secrets", "configs"):
        for entry in (table.get(section) or {}).values():
            if isinstance(entry, Table) and "file" in entry:
                entry["file"] = _moved(str(entry["file"]), base, directory)
    return table


def _rebased_service(service: Table, base: str, directory: str) -> Table:
    if os.path.realpath(base) == os.path.realpath(directory):
        return service
    for number, mount in enumerate(service.get("volumes") or []):
        if isinstance(mount, str) and mount.startswith("."):
            source, colon, rest = mount.partition(":")
            service["volumes"][number] = f"{_moved(source, base, directory)}{colon}{rest}"
        elif isinstance(mount, dict) and str(mount.get("source", "")).startswith("."):
            mount["source"] = _moved(str(mount["source"]), base, directory)
    files = service.get("env_file")
    if isinstance(files, str):
        service["env_file"] = _moved(files, base, directory)
    elif isinstance(files, list):
        for number, file in enumerate(files):
            if isinstance(file, str):
                files[number] = _moved(file, base, directory)
            elif isinstance(file, dict) and "path" in file:
                file["path"] = _moved(str(file["path"]), base, directory)
    return service


def _moved(path: str, base: str, directory: str) -> str:
    if os.path.isabs(path) or path.startswith("~"):
        return path
    moved = os.path.relpath(os.path.join(base, path), directory)
    return moved if moved.startswith(".") else f"./{moved}"


# --- files on top of each other -------------------------------------------------------------------------------------


def merged(below: Table, above: Table, key: str = "") -> Table:
    """Two mappings as compose puts files on top of each other: mappings and lists grow, other values are replaced."""
    result = Table(below.file or above.file)
    for table in (below, above):
        result.places.update({inner: table.where(inner) for inner in table})
    for inner, value in below.items():
        result[inner] = value
    for inner, value in above.items():
        before = result.get(inner)
        if isinstance(value, Tagged):
            if value.tag not in ("!reset", "!override"):
                raise Failure(f"{above.where(inner)}: the tag {value.tag} is not known", code=WRONG_FILE)
            result[inner] = None if value.tag == "!reset" else value.value
            if value.tag == "!reset":
                del result[inner]
        elif inner in _BY_KEY and before is not None:
            result[inner] = merged(by_key(before, below.file), by_key(value, above.file))
        elif inner in ("depends_on", "networks") and not isinstance(value, type(before)) and before is not None:
            result[inner] = merged(_names(before, below.file), _names(value, above.file))
        elif isinstance(before, Table) and isinstance(value, Table):
            result[inner] = merged(before, value, inner)
        elif isinstance(before, list) and isinstance(value, list) and inner not in _REPLACED:
            result[inner] = [*(item for item in before if not _replaces(inner, value, item)), *value]
        else:
            result[inner] = value
    result.file = above.file or below.file
    return result


def _replaces(key: str, above: list[Any], item: Any) -> bool:
    """Whether a later list has the same entry: a mount is known by its target."""
    if item in above:
        return True
    return key == "volumes" and _mount_target(item) in [_mount_target(other) for other in above]


def _mount_target(mount: Any) -> str:
    if isinstance(mount, dict):
        return str(mount.get("target", ""))
    fields = str(mount).split(":")
    return fields[1] if len(fields) > 1 else fields[0]


def by_key(value: Any, file: str = "") -> Table:
    """A mapping, or the list "KEY=VALUE" (a bare KEY: None) as one; extra_hosts may say "KEY:VALUE"."""
    if isinstance(value, Table):
        return value
    table = Table(file)
    for item in value if isinstance(value, list) else [value] if value is not None else []:
        text = str(item)
        key, equals, rest = text.partition("=")
        table[key] = rest if equals else None
    return table


def _names(value: Any, file: str) -> Table:
    if isinstance(value, Table):
        return value
    table = Table(file)
    for name in value or []:
        table[str(name)] = None
    return table


def untagged(value: Any) -> Any:
    """The same without tags that had nothing below them to change."""
    if isinstance(value, Tagged):
        if value.tag not in ("!reset", "!override"):
            raise Failure(f"the tag {value.tag} is not known", code=WRONG_FILE)
        return None if value.tag == "!reset" else untagged(value.value)
    if isinstance(value, Table):
        for key in list(value):
            value[key] = untagged(value[key])
    elif isinstance(value, list):
        value[:] = [untagged(item) for item in value]
    return value


def depends_on(table: Table) -> dict[str, Any]:
    """What a service depends on: depends_on in both its spellings, links, and networks or mounts it shares."""
    value = table.get("depends_on") or {}
    found: dict[str, Any] = dict(value) if isinstance(value, dict) else {str(name): None for name in value}
    for link in table.get("links") or []:
        found.setdefault(str(link).partition(":")[0], None)
    for key in ("network_mode", "pid", "ipc"):
        kind, _, other = str(table.get(key) or "").partition(":")
        if kind == "service" and other:
            found.setdefault(other, None)
    return found


def _table(whole: Table, key: str) -> Table:
    value = whole.get(key)
    if value is None:
        return Table(whole.file)
    if not isinstance(value, Table):
        raise Failure(f"{whole.where(key)}: {key}: expected a mapping of names", code=WRONG_FILE)
    return value
