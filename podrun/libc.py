"""Functions of the C library that Python's os module lacks, called by _ctypes, the compiled half of ctypes.

The other half takes 1 ms of every start to import: it makes types that are not needed here. Integers are passed as C's
int, bytes as a pointer to them, None as NULL; whatever is wider is wrapped in :class:`Long`.
"""

from __future__ import annotations

import _ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    #: A function of the library: it takes what is said above, and returns its result.
    Function = Callable[..., int]


class Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """C's long, as wide as a register: syscall(2) and flags of mount(2) take longs."""

    _type_ = "l"


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _ReturnsInt(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Int


class _ReturnsLong(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = Long


#: What is linked into the interpreter already.
_LIBRARY = _ctypes.dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type]  # NULL: dlopen(3)


def function(name: str) -> Function:
    """A function that returns an int, -1 for an error: see :func:`checked`."""
    return _ReturnsInt(_ctypes.dlsym(_LIBRARY, name))


_syscall = _ReturnsLong(_ctypes.dlsym(_LIBRARY, "syscall"))
prctl = function("prctl")


def syscall(number: int, *arguments: int | bytes | None, path: str | bytes | None = None) -> int:
    """syscall(2): every integer goes as a long. Raises OSError, about ``path``."""
    wide = [Long(value) if isinstance(value, int) else value for value in arguments]
    return checked(_syscall(Long(number), *wide), path)


def checked(result: int, path: str | bytes | None = None) -> int:
    """The result of a function; raises OSError, about ``path``, when it is negative."""
    if result < 0:
        number = _ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result
