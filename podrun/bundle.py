"""The compiled modules of the start path in one file, ``bundle.pyc`` beside this one: one read instead of 90 searches.

The bundle is kept as Python keeps bytecode. A module comes from it only while its source has the size and the times
(mtime and ctime) that it had then; anything else is imported as ever, and at its end the same podrun writes the bundle
anew. So it holds what starts on this machine have needed, and never code that is not the source's. It has to be written
by root or by the user who runs podrun. pip removes a file of this name together with bundle.py.
"""

from __future__ import annotations

import _frozen_importlib
import _frozen_importlib_external
import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import CodeType
    from typing import Any

    #: The path of a module's source, its size, mtime and ctime (ns).
    Source = tuple[str, int, int, int]
else:
    import _signal

PACKAGES = ("podrun", "podrun_hooks")
PATH = f"{os.path.dirname(__file__)}/bundle.pyc"


def _source(path: str) -> Source:
    found = os.stat(path)
    return path, found.st_size, found.st_mtime_ns, found.st_ctime_ns


#: What the file begins with: another Python, or another edition of this module, has another. The length of the index
#: (4 bytes), the index and the modules' code follow.
_MAGIC = f"{_frozen_importlib_external.MAGIC_NUMBER!r} {sys.implementation.cache_tag} {_source(__file__)}\n".encode()
_AT = len(_MAGIC) + 4
_NONE = (("", 0, 0, 0), 0, 0)


class _Loader(_frozen_importlib_external.SourceFileLoader):
    """Python's loader of source files, which has the code already."""

    code: CodeType

    def get_code(self, fullname: str) -> CodeType:
        """The code of the module, which has been compared with its source."""
        return self.code


class Bundle:
    """Finds modules in what the file holds (sys.meta_path), and notes which ones it could not give."""

    def __init__(self, content: bytes) -> None:
        end = _AT + int.from_bytes(content[_AT - 4 : _AT], "little")
        #: Of a module: what its source is, and where its code begins and ends.
        self.index: dict[str, tuple[Source, int, int]] = {}
        self.code = memoryview(content)[end:]
        self.missed: list[str] = []
        if content.startswith(_MAGIC):
            try:
                self.index = marshal.loads(content[_AT:end])
            except (ValueError, EOFError, TypeError):
                pass  # cut off by a power failure

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        """How to load a module whose source is as it was; None: Python finds it as ever."""
        if not path or not name.startswith(PACKAGES):
            return None
        try:
            was, begin, end = self.index.get(name, _NONE)
            source = was[0]
            if not source.startswith(f"{path[0]}/") or _source(source) != was:
                raise ValueError("it has changed, or another copy of the package is meant")
            code = marshal.loads(self.code[begin:end])
            if code.co_filename != source:
                raise ValueError("not its code")
        except (OSError, ValueError, EOFError, TypeError, AttributeError):
            self.missed.append(name)
            return None
        loader = _Loader(name, source)
        loader.code = code
        package = source.endswith("/__init__.py")
        spec = _frozen_importlib.ModuleSpec(name, loader, origin=source, is_package=package)
        spec.has_location = True
        spec.cached = PATH
        if package:
            spec.submodule_search_locations = [os.path.dirname(source)]
        return spec


def install() -> Bundle:
    """Has modules come from the bundle where there is one to be believed."""
    bundle = Bundle(_content())
    sys.meta_path.insert(0, bundle)
    return bundle


def _content() -> bytes:
    """What the file holds; b"" where there is none, where somebody else has written it, or for other bytecode."""
    if sys.flags.optimize or sys.pycache_prefix:
        return b""
    try:
        fd = os.open(PATH, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        found = os.fstat(fd)
        return os.read(fd, found.st_size) if _is_believed(found) else b""
    except OSError:
        return b""
    finally:
        os.close(fd)


def _is_believed(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o022


def problem() -> str:
    """Why modules never come from the file that is there; "" when they do, or there is none."""
    try:
        found = os.lstat(PATH)
    except OSError:
        return ""
    return "" if _is_believed(found) else f"{PATH} belongs to uid {found.st_uid}, or others can write to it: not used"


def keep(bundle: Bundle) -> None:
    """Writes the file anew when modules were missed, with those; what cannot be is left to another start.

    For the end of a process: no signal of those that ask for its end is heard any more.
    """
    if not bundle.missed or sys.dont_write_bytecode or sys.flags.optimize or sys.pycache_prefix:
        return
    _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGHUP, _signal.SIGINT, _signal.SIGTERM, _signal.SIGALRM))
    found = {name: module for name in bundle.missed if (module := _compiled(sys.modules.get(name)))}
    before = {name: (source, bytes(bundle.code[begin:end])) for name, (source, begin, end) in bundle.index.items()}
    modules = {**before, **found}
    if modules == before:
        return
    index, at = {}, 0
    for name, (source, code) in modules.items():
        index[name] = (source, at, at := at + len(code))
    told = marshal.dumps(index)
    try:
        _replace(b"".join([_MAGIC, len(told).to_bytes(4, "little"), told, *(code for _, code in modules.values())]))
    except OSError:
        pass


def _replace(content: bytes) -> None:
    """Gives the file another content, at once for whoever reads it. Raises OSError."""
    directory, name = os.path.split(PATH)
    # In a directory of another user's, that one could lead elsewhere what is written.
    if os.stat(directory).st_uid != os.geteuid():
        return
    for left in os.listdir(directory):
        if left.startswith(f"{name}."):  # by a podrun that was killed, or that is writing now: it will do without
            os.unlink(f"{directory}/{left}")
    scratch = f"{PATH}.{os.getpid()}"
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        if os.write(fd, content) == len(content):
            os.rename(scratch, PATH)
        else:  # the disk is full
            os.unlink(scratch)
    finally:
        os.close(fd)


def _compiled(module: Any) -> tuple[Source, bytes] | None:
    """What a module's source is, and its code; None without a source, or when that changes meanwhile.

    Compiled anew: a file of __pycache__ is believed by the second of the source's mtime, which an edit may share.
    """
    spec: Any = getattr(module, "__spec__", None)
    if not spec or not isinstance(spec.loader, _frozen_importlib_external.SourceFileLoader):
        return None
    try:
        before = _source(spec.origin)
        code = spec.loader.source_to_code(spec.loader.get_data(spec.origin), spec.origin)
        after = _source(spec.origin)
    except (OSError, SyntaxError, ImportError):
        return None
    return (after, marshal.dumps(code)) if before == after else None
