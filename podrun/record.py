"""Frozen records with typed fields: typing.NamedTuple for the type checker, a cheap twin of it at run time.

Importing ``typing`` costs 8 ms on CPython 3.11 (it pulls in ``re``), ``dataclasses`` 12 ms: both are more than
creating a network namespace. The start path therefore builds its nouns with this metaclass.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:
    from _collections import _tuplegetter  # as collections.namedtuple does

    class _Meta(type):
        def __new__(mcs, name, bases, body):
            if bases == (tuple,):
                return super().__new__(mcs, name, bases, body)
            # ``from __future__ import annotations`` keeps __annotations__ a plain dict of strings in the class body.
            fields = tuple(body.get("__annotations__", ()))
            defaults = {field: body.pop(field) for field in fields if field in body}
            body |= {field: _tuplegetter(index, None) for index, field in enumerate(fields)}
            body |= {"__slots__": (), "_fields": fields, "_field_defaults": defaults, "__match_args__": fields}
            return super().__new__(mcs, name, (_Record,), body)

    class _Record(tuple, metaclass=_Meta):
        __slots__ = ()
        _fields = ()
        _field_defaults = {}

        def __new__(cls, *values, **named):
            if named or len(values) != len(cls._fields):
                values = cls._completed(values, named)
            return tuple.__new__(cls, values)

        @classmethod
        def _completed(cls, values, named):
            fields = cls._fields
            if len(values) > len(fields):
                raise TypeError(f"{cls.__name__} takes {len(fields)} fields, not {len(values)}")
            row = list(values)
            for field in fields[len(values) :]:
                if field in named:
                    row.append(named.pop(field))
                elif field in cls._field_defaults:
                    row.append(cls._field_defaults[field])
                else:
                    raise TypeError(f"{cls.__name__} lacks {field}")
            if named:
                raise TypeError(f"{cls.__name__} has no {', '.join(named)}")
            return row

        @classmethod
        def _make(cls, values):
            return cls(*values)

        def _replace(self, **changes):
            return type(self)(**{**self._asdict(), **changes})

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self):
            pairs = ", ".join(f"{field}={value!r}" for field, value in self._asdict().items())
            return f"{type(self).__name__}({pairs})"

    class _Base:
        """Stands in a class statement's bases for the record type (PEP 560)."""

        def __mro_entries__(self, bases):
            return (_Record,)

    NamedTuple = _Base()
