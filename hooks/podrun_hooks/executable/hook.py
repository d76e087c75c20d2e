"""Executables as hooks (``exec:/path``, or by name): the verb in PODRUN_VERB, a JSON object in, a JSON object out."""

from __future__ import annotations

import os
import stat

from podrun import jsontext
from podrun.errors import OF_A_STEP, STEP_FAILED, WRONG_FILE, Failure
from podrun.hook import VERSION, Problem
from podrun_hooks.executable import process
from podrun_hooks.support import trusted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from podrun.hook import Facts, Step

#: An executable declares nothing here: it may have any options, and read and return any facts.
Options = None
takes: Sequence[str] | None = None
gives: Sequence[str] = ()
resident = False
default_name = ""

#: Time-out of a verb in seconds if the step has no ``timeout``: that of systemd's DefaultTimeoutStartSec.
PATIENCE = 90.0
#: Time-out of describe in seconds: it is interactive.
_DESCRIBE_TIMEOUT = 5.0
#: Directories that are searched for executables by name: the administrator's first, then that of packages.
DIRECTORIES = ("/etc/podrun/hooks.d", "/usr/lib/podrun/hooks")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Longest value of an environment variable; execve(2) allows 128 KiB for one string.
_LONGEST = 1 << 16


def up(step: Step, facts: Facts) -> Facts:
    """Runs the executable with PODRUN_VERB=up; its standard output is the step's facts."""
    return ask(step, "up", facts, {})


def down(step: Step, own: Facts) -> None:
    """Runs the executable with PODRUN_VERB=down and the facts that ``up`` printed."""
    ask(step, "down", {}, own)


def check(step: Step) -> list[Problem]:
    """Checks the file; runs the executable only for a thorough check (``podrun check``, ``podrun plan``)."""
    try:
        _path_of(step)
    except Failure as failure:
        return [Problem(failure.what, failure.code, failure.hint, key="hook")]
    if not step.pod.thorough:
        return []
    if wrong := _wrong(step):
        return wrong
    try:
        problems = ask(step, "check", {}, {}).get("problems", [])
    except Failure as failure:
        return [Problem(failure.what, failure.code, failure.hint, fatal=False, key=failure.key)]
    return [_problem(problem) for problem in problems] if isinstance(problems, list) else []


def describe(step: Step) -> Facts:
    """The executable's answer to PODRUN_VERB=describe; {} if it does not support that verb.

    Any of "doc" (a line), "takes" and "gives" (names of facts), "beside" (true: two generations of a pod can have the
    step at once), "options" (a JSON Schema).
    """
    from podrun_hooks.executable import declaration

    try:
        return declaration.plain(ask(step._replace(timeout=_DESCRIBE_TIMEOUT), "describe", {}, {}))
    except Failure:
        return {}


def exclusive(step: Step) -> str:
    """Only the executable knows whether two generations of a pod can have the step at once: see ``beside``."""
    return (
        "" if describe(step).get("beside") else "the executable does not say that it may run beside itself (describe)"
    )


def _wrong(step: Step) -> list[Problem]:
    """The problems that the executable's own declaration finds in the step's options."""
    from podrun_hooks.executable import declaration

    found = declaration.wrong(describe(step).get("options"), step.options)
    return [Problem(wrong.what, WRONG_FILE, key=str(wrong.where[0]) if wrong.where else "") for wrong in found]


def explain(step: Step) -> list[str]:
    """The command that runs the step by hand."""
    question = jsontext.dumps({"version": VERSION, "step": _step(step), "facts": {}, "own": {}})
    quoted = question.replace("'", "'\\''")
    return [f"echo '{quoted}' | PODRUN_VERB=up {placed(step.hook)}"]


def placed(name: str) -> str:
    """The path of an executable hook; "" if no drop-in directory has an executable of that name.

    PODRUN_HOOKS adds directories, separated by colons, before the usual ones.
    """
    if name.startswith("exec:"):
        return name[5:]
    if "/" in name or name.startswith("."):
        return ""
    found = (f"{directory}/{name}" for directory in directories())
    return next((path for path in found if os.path.lexists(path)), "")


def directories() -> list[str]:
    """The directories that are searched for executables by name; the first match wins."""
    added = os.environ.get("PODRUN_HOOKS", "")
    return [*(place for place in added.split(":") if place.startswith("/")), *DIRECTORIES]


def ask(step: Step, verb: str, facts: Facts, own: Facts, version: int = VERSION) -> Facts:
    """Runs one verb; returns the object it printed. Raises Failure for anything but exit 0 with JSON or nothing."""
    path = _path_of(step)
    question = {
        "version": version,
        # JSON has no infinity: null stands for "as long as it takes".
        "pod": {key: None if value == float("inf") else value for key, value in step.pod._asdict().items()},
        "step": _step(step),
        "facts": facts,
        "own": own,
    }
    limited = step.timeout != float("inf")
    patience = process.Patience(step.timeout if limited else PATIENCE, firm=limited)
    progress = process.Progress(_socket_of(step) if verb in ("up", "down") else "", step.notify)
    environ = _environ(step, verb, facts, version)
    if progress.path:
        environ["NOTIFY_SOCKET"] = progress.path
    try:
        asked = jsontext.dumps(question).encode()
        status, output = process.run(path, environ, asked, patience, progress, os.path.basename(path))
    finally:
        progress.close()
    answer = _answer(output)
    if status:
        report = answer if isinstance(answer, dict) else {}
        what = str(report.get("error") or f"{verb} of {path} ended with {status}")
        code = status if status in OF_A_STEP else STEP_FAILED
        raise Failure(what, code=code, hint=str(report.get("hint") or ""), key=str(report.get("key") or ""))
    if not isinstance(answer, dict):
        raise Failure(
            f"{path} printed what is not one JSON object: {output[:60]!r}", hint="its log goes to standard error"
        )
    return answer


def _step(step: Step) -> dict[str, Any]:
    return {"hook": step.hook, "name": step.name, "options": step.options}


def _environ(step: Step, verb: str, facts: Facts, version: int) -> dict[str, str]:
    """The complete environment. It repeats parts of the JSON input for shell scripts, which have no JSON parser."""
    environ = {
        "PATH": _PATH,
        "LANG": "C.UTF-8",
        "PODRUN_VERB": verb,
        "PODRUN_HOOK_VERSION": str(version),
        "PODRUN_ROOT": step.pod.root,
        "PODRUN_RUN": step.pod.run,
        "PODRUN_POD": step.pod.name,
        "PODRUN_TAG": step.pod.tag,
        "PODRUN_DIRECTORY": step.pod.directory,
        "PODRUN_STEP": step.name,
        "PODRUN_GENERATION": str(step.pod.generation),
        "PODRUN_NETNS": facts.get("netns"),
    }
    for key, value in step.options.items():
        environ[f"PODRUN_OPTION_{key.upper().replace('-', '_')}"] = _text(value)
    fits = {key: text for key, text in environ.items() if isinstance(text, str) and "=" not in key}
    return {key: text for key, text in fits.items() if "\0" not in key + text and len(text) < _LONGEST}


def _text(value: Any) -> str | None:
    """An option's value for a shell: a list has one item per line. None if only JSON can express it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, (list, tuple)) and all(isinstance(item, (str, int, float)) for item in value):
        return "\n".join(str(_text(item)) for item in value)
    return None


def _socket_of(step: Step) -> str:
    """The path of this step's progress socket; it differs for each step, as several can run at once."""
    from binascii import crc32

    return f"{step.pod.directory}/notify-{crc32(f'{step.hook} {step.name}'.encode()):08x}"


def _answer(output: bytes) -> Any:
    if not output.strip():
        return {}
    try:
        return jsontext.loads(output.decode())
    except (ValueError, RecursionError):
        return None


def _problem(item: Any) -> Problem:
    """A problem as ``check`` printed it: a string, or an object with the fields of Problem."""
    if not isinstance(item, dict):
        return Problem(str(item), fatal=False)
    code = item.get("code")
    return Problem(
        str(item.get("what") or "(no description)"),
        code if code in OF_A_STEP else STEP_FAILED,
        str(item.get("hint") or ""),
        fatal=item.get("fatal") is True,
        key=str(item.get("key") or ""),
    )


def _path_of(step: Step) -> str:
    """The executable's path with symlinks resolved. Raises Failure; as root, also if other users could change it."""
    path = placed(step.hook)
    if not path:
        where = " and ".join(directories())
        raise Failure(f"there is no executable {step.hook} in {where}", code=WRONG_FILE)
    if not path.startswith("/"):
        raise Failure(f"exec: wants an absolute path, not {path!r}", code=WRONG_FILE)
    try:
        real = trusted.place(path, DIRECTORIES[0])
        found = os.stat(real)
    except FileNotFoundError:
        raise Failure(f"there is no {path}", code=WRONG_FILE) from None
    if not stat.S_ISREG(found.st_mode):
        raise Failure(f"{path} is not a file", code=WRONG_FILE)
    if not os.access(real, os.X_OK):
        raise Failure(f"{path} is not an executable file", code=WRONG_FILE, hint=f"chmod +x {path}")
    if why := _not_to_be_executed(real):
        raise Failure(f"{path} {why}", code=WRONG_FILE)
    return real


def _not_to_be_executed(path: str) -> str:
    """Why execve(2) would fail with no more than "Exec format error" or "No such file or directory"; "" if not."""
    try:
        with open(path, "rb", buffering=0) as file:
            start = file.read(256)
    except OSError:
        return ""  # executable, but not readable
    if start.startswith(b"\x7fELF") or not start.startswith(b"#!"):
        return "" if start.startswith(b"\x7fELF") else "begins with neither #! nor a program's header"
    line = start[2:].partition(b"\n")[0]
    if line.endswith(b"\r"):
        return "has lines that end in CRLF, as on Windows"
    words = line.split()
    if not words or not os.path.exists(words[0]):
        return f"is a script for {os.fsdecode(words[0]) if words else 'nothing'}, which is not there"
    return ""
