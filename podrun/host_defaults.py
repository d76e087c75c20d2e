"""podrun.toml: where it is, and what its [defaults] say; podfile.defaults knows which of them complete a pod file."""

from __future__ import annotations

import os

from podrun import ownership
from podrun.errors import NOT_ALLOWED, WRONG_FILE, Failure, code_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

PATH = "/etc/podrun/podrun.toml"


def path(environ: Mapping[str, str] = os.environ) -> str:
    """The file: PODRUN_CONFIG names another one."""
    return environ.get("PODRUN_CONFIG") or PATH


def read(file: str, word: str = "") -> dict[str, Any]:
    """``[defaults]`` of a file as written, {} where there is none, or without reading it where ``word`` is not in it.

    Raises Failure: NOT_ALLOWED when others than root could change it, WRONG_FILE when it is not TOML.
    """
    try:
        content = ownership.read(file)
    except FileNotFoundError:
        return {}
    except ownership.Untrusted as error:
        raise Failure(error.about(file), code=NOT_ALLOWED, hint=error.hint("/etc/podrun")) from None
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}", code=code_of(error)) from None
    if word.encode() not in content:
        return {}  # tomllib takes 12 ms of a start
    import tomllib

    try:
        table = tomllib.loads(content.decode()).get("defaults", {})
    except ValueError as error:
        raise Failure(f"{file}: {error}", code=WRONG_FILE) from None
    if not isinstance(table, dict):
        raise Failure(f"{file}: [defaults] is not a table", code=WRONG_FILE)
    return table
