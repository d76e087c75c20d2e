"""Finding and reading a pod file and its drop-ins: which file a word means, whom root believes, TOML, variables."""

from __future__ import annotations

import errno
import os
import stat

from podrun import ownership
from podrun.errors import WRONG_FILE, Failure, code_of
from podrun.options import Wrong
from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from podrun.hook import Where

#: Bytes; a pod file is written by people.
LIMIT = 1 << 20
#: What other tools' files are called, and who turns them into pod files.
_OTHERS = {".yaml": "compose", ".yml": "compose", ".container": "quadlet", ".pod": "quadlet", ".kube": "kube"}
_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_0123456789")


class Source(NamedTuple):
    """A text and the path that messages name it by; ``text`` is None where there never was one."""

    path: str
    text: str | None

    def failure(self, what: str, where: Where) -> Failure:
        """The Failure for what is wrong at ``where``, with file and line."""
        return wrong(self.at(where), what)

    def at(self, where: Where) -> str:
        """The file and the line of what ``where`` leads to."""
        at = shown(self.path) if self.path else ""
        if self.text is None:
            return at
        from podrun.podfile.position import locate

        return f"{at}:{locate(self.text, where)[0]}"


class Found(NamedTuple):
    """What a word on the command line leads to."""

    #: The pod file, then its drop-ins in their order.
    texts: list[Source]
    #: The pod's name as the file's name gives it, without the instance.
    name: str
    #: What stands behind the "@" of a template's instance; "" where the file is not a template.
    instance: str


def wrong(at: str, what: str, hint: str = "", code: int = WRONG_FILE) -> Failure:
    """A Failure in one line of bearable length: a file's own words go into messages."""
    line = what if what.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in what)
    line = line if len(line) <= 400 else f"{line[:400]}..."
    return Failure(f"{at}: {line}" if at else line, code=code, hint=hint)


def shown(path: str) -> str:
    """A path as messages show it: as it is, or quoted where it would break the line."""
    return path if path.isprintable() else repr(path)


def find(word: str, etc: str, *, in_unit: bool, template: bool = False) -> Found:
    """Reads the pod file that ``word`` (a path, or a pod's name) leads to, and its drop-ins.

    ``in_unit``: they must belong to root; ``template``: a template itself (web@.toml) may be meant. Raises Failure
    (WRONG_FILE) for what is missing, not a plain file, bigger than LIMIT, not UTF-8 or, as root, writable for others.
    """
    named = "/" not in word and not word.endswith(".toml")
    path = f"{etc}/{word}.toml" if named else word
    directory, file = os.path.split(path)
    stem, extension = os.path.splitext(file)
    if (converter := _OTHERS.get(os.path.splitext(word)[1])) and os.path.exists(word):
        what = f"podrun reads pod files in TOML, and {shown(word)} is named as something else"
        raise wrong("", what, f"'podrun convert {converter} {shown(word)}' makes pod files of it")
    name, at, instance = stem.partition("@")
    if at and not instance and not template:
        raise wrong(shown(path), f"a template needs an instance, as in {name}@blue")
    candidates = [path, os.path.join(directory, f"{name}@{extension}")] if instance else [path]
    root = frozenset({0})
    for candidate in candidates:
        try:
            text, owner = _read(candidate, root if in_unit else None)
        except FileNotFoundError:
            continue
        texts = [text]
        for beside in reversed(candidates):
            texts += _drop_ins(f"{beside}.d", root if in_unit else root | {owner})
        return Found(texts, name, instance)
    raise _missing(word, path, etc, named)


def configuration(path: str) -> Source | None:
    """The text of podrun's own configuration, which as root has to be root's; None where there is none."""
    try:
        return _read(path, None if os.geteuid() else frozenset({0}))[0]
    except FileNotFoundError:
        return None


def _missing(word: str, path: str, etc: str, named: bool) -> Failure:
    if not named:
        return wrong(shown(path), "there is no such file")
    from difflib import get_close_matches

    try:
        names = [name.removesuffix(".toml") for name in os.listdir(etc) if name.endswith(".toml")]
    except OSError:
        names = []
    near = get_close_matches(word, names, 1, 0.6)
    hint = f"did you mean {near[0]!r}?" if near else "a path has a slash or ends in .toml"
    return wrong("", f"there is no pod {word!r}: {shown(path)} does not exist", hint)


def _read(path: str, owners: frozenset[int] | None) -> tuple[Source, int]:
    """A file's text and its owner. Raises FileNotFoundError, and Failure for anything else."""
    try:
        fd = ownership.opened(path, owners=owners)
    except FileNotFoundError:
        raise
    except ownership.Untrusted as error:
        raise _unbelieved(path, error) from None
    except (OSError, ValueError) as error:
        # ENXIO is what open(2) says of a socket.
        odd = isinstance(error, OSError) and error.errno == errno.ENXIO
        what = "it is not a plain file" if odd else getattr(error, "strerror", None) or str(error)
        raise wrong(shown(path), what, code=code_of(error) if isinstance(error, OSError) else WRONG_FILE) from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise wrong(shown(path), "it is a directory" if stat.S_ISDIR(status.st_mode) else "it is not a plain file")
        data = b""
        while len(data) <= LIMIT >= status.st_size and (piece := os.read(fd, 65536)):
            data += piece
    except OSError as error:
        raise wrong(shown(path), error.strerror or str(error), code=code_of(error)) from None
    finally:
        os.close(fd)
    if max(len(data), status.st_size) > LIMIT:
        raise wrong(shown(path), f"bigger than {LIMIT >> 20} MiB: this cannot be a pod file")
    return Source(path, _text(path, data)), status.st_uid


def _unbelieved(path: str, error: ownership.Untrusted) -> Failure:
    """The Failure for a file that root does not believe."""
    return wrong("", f"{error.about(path)}, and podrun runs as root", error.hint("/etc/podrun"))


def _drop_ins(directory: str, owners: frozenset[int]) -> list[Source]:
    """The drop-ins of one directory. It, too, must be beyond the reach of others: they could add a file to it."""
    try:
        fd = ownership.opened(directory, os.O_RDONLY | os.O_DIRECTORY, owners=owners)
    except FileNotFoundError:
        return []
    except ownership.Untrusted as error:
        raise _unbelieved(directory, error) from None
    except OSError as error:
        raise wrong(shown(directory), error.strerror or str(error), code=code_of(error)) from None
    try:
        names = sorted(name for name in os.listdir(fd) if name.endswith(".toml") and name[0] != ".")
    finally:
        os.close(fd)
    try:
        return [_read(f"{directory}/{name}", owners)[0] for name in names]
    except FileNotFoundError as error:
        raise wrong(shown(str(error.filename)), "a link that leads nowhere") from None


def _text(path: str, data: bytes) -> str:
    if data.startswith(b"\xef\xbb\xbf"):
        raise wrong(f"{shown(path)}:1:1", "a byte order mark is not TOML: save the file as UTF-8 without it")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        start = data.rfind(b"\n", 0, error.start) + 1
        line = data.count(b"\n", 0, start) + 1
        column = len(data[start : error.start].decode()) + 1
        raise wrong(f"{shown(path)}:{line}:{column}", f"byte {data[error.start]:#04x} is not UTF-8") from None


def tables(source: Source) -> dict[str, Any]:
    """The TOML tables of a text. Raises Failure (WRONG_FILE) with file:line:column."""
    import tomllib

    text = source.text or ""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, position = str(error).rpartition(" (at ")
        if position.startswith("line "):
            line, column = position.removeprefix("line ").rstrip(")").split(", column ")
        else:
            line, column = str(text.count("\n") + 1), str(len(text) - text.rfind("\n"))
        raise wrong(f"{shown(source.path)}:{line}:{column}", what) from None
    except ValueError:  # of int(): CPython converts at most 4300 digits
        raise wrong(shown(source.path), "a number has too many digits") from None
    except RecursionError:
        raise wrong(shown(source.path), "arrays or tables are nested too deeply") from None


def resolver(environ: Mapping[str, str] | None, instance: str = "") -> Callable[[str], str]:
    """A function that substitutes ``${VAR}`` and, where there is an instance, ``%i`` in a string; it raises Wrong.

    ``$${`` stands for ``${`` and in a template ``%%`` for ``%``. Without ``environ`` variables stay as they are.
    """

    def resolve(text: str) -> str:
        if "${" not in text and not (instance and "%" in text):
            return text
        done, at = "", 0
        while at < len(text):
            if text.startswith("$${", at):
                done, at = done + ("${" if environ is not None else "$${"), at + 3
            elif text.startswith("${", at):
                end = text.find("}", at)
                name = text[at + 2 : end] if end > 0 else text[at + 2 :]
                if end < 0 or not name or not _NAME.issuperset(name) or name[0].isdigit():
                    raise Wrong(f"{text[at:]!r}: expected ${{NAME}}; $${{ stands for a plain ${{")
                if environ is None:
                    done += text[at : end + 1]
                elif name in environ:
                    done += environ[name]
                else:
                    raise Wrong(f"the variable {name} is not set; $${{ stands for a plain ${{")
                at = end + 1
            elif instance and text[at : at + 2] in ("%i", "%%"):
                done, at = done + (instance if text[at + 1] == "i" else "%"), at + 2
            else:
                done, at = done + text[at], at + 1
        return done

    return resolve
