"""nf_tables messages for the elements of maps and sets: ask for one or all, add and delete; and is a table there.

Adding a published port by ``nft`` costs 4 ms for starting it; as a message it is 0.1 ms. Layouts are those of
<linux/netfilter/nfnetlink.h> and <linux/netfilter/nf_tables.h>; publish/ruleset.py knows what a table looks like.
"""

from __future__ import annotations

import os
from _struct import Struct

from podrun.record import NamedTuple
from podrun_hooks.network.netlink.rtnetlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    Message,
    Socket,
    attribute,
    attributes,
    nested,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

NETLINK_NETFILTER = 12
_ENOENT = 2
_NFPROTO_UNSPEC, _NFPROTO_INET = 0, 1
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 16, 17
_GETTABLE, _GETCHAIN, _NEWSETELEM, _GETSETELEM, _DELSETELEM = (_SUBSYSTEM << 8 | kind for kind in (1, 4, 12, 13, 14))
_NFTA_TABLE_NAME = 1
_CHAIN_TABLE, _CHAIN_NAME = 1, 3
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ELEM = 1, 2, 3, 1
_ELEM_KEY, _ELEM_DATA, _ELEM_TIMEOUT, _ELEM_USERDATA, _DATA_VALUE = 1, 2, 4, 6, 1
_UDATA_COMMENT = 0  # libnftnl's NFTNL_UDATA_SET_ELEM_COMMENT: what ``nft list`` shows as the element's comment

_FAMILY = Struct("=BB")
_RESOURCE = Struct(">H")


class Element(NamedTuple):
    """One element of a map: key and value as the kernel holds them, and the comment that names its owner.

    An element of a set has no value.
    """

    map: str
    key: bytes
    value: bytes
    comment: str = ""
    #: Milliseconds after which the kernel deletes it; 0: never.
    timeout: int = 0


_kept: list[tuple[int, Socket]] = []


def socket() -> Socket:
    """The process's netfilter socket, opened at first use and kept.

    Closing one waits until the kernel has freed what anybody has deleted recently: 13 ms (nft_rcv_nl_event() in
    net/netfilter/nf_tables_api.c). A forked child gets one of its own.
    """
    pid = os.getpid()
    if not _kept or _kept[0][0] != pid:
        _kept[:] = [(pid, Socket(NETLINK_NETFILTER))]
    return _kept[0][1]


def close() -> None:
    """Closes the process's netfilter socket; call it before a deletion that should not be waited for."""
    if _kept and _kept[0][0] == os.getpid():
        _kept.pop()[1].close()


def concatenated(*fields: bytes) -> bytes:
    """A key or value of several fields: each is padded to four bytes (nftables' 32-bit registers)."""
    return b"".join(field + b"\0" * (-len(field) % 4) for field in fields)


def has_table(socket: Socket, table: str) -> bool:
    """True when the inet table is there."""
    return _is_there(socket, Message(f"look for table {table}", _GETTABLE, NLM_F_ACK, _named(_NFTA_TABLE_NAME, table)))


def has_chain(socket: Socket, table: str, name: str) -> bool:
    """True when the table is there and has that chain."""
    body = _named(_CHAIN_TABLE, table) + _text(_CHAIN_NAME, name)
    return _is_there(socket, Message(f"look for {name} of table {table}", _GETCHAIN, NLM_F_ACK, body))


def _named(kind: int, table: str) -> bytes:
    return _family(_NFPROTO_INET) + _text(kind, table)


def _is_there(socket: Socket, message: Message) -> bool:
    try:
        return bool(socket.send(message))
    except OSError as error:
        if error.errno == _ENOENT:
            return False
        raise


def find(socket: Socket, table: str, map_: str, key: bytes) -> Element | None:
    """The element of that key, or None; also when there is no such table or map."""
    body = _list(table, map_, [nested(_LIST_ELEM, _value(_ELEM_KEY, key))])
    try:
        answers = socket.send(Message(f"look into {map_}", _GETSETELEM, NLM_F_ACK, body))
    except OSError as error:
        if error.errno == _ENOENT:
            return None
        raise
    for _, answer in answers:
        for kind, elements in attributes(answer[4:]):
            for _, element in attributes(elements) if kind == _LIST_ELEMENTS else ():
                return _element(map_, key, dict(attributes(element)))
    return None


def elements(socket: Socket, table: str, map_: str) -> list[Element]:
    """All elements of a map or set; none when there is no such table."""
    names = _text(_LIST_TABLE, table) + _text(_LIST_SET, map_)
    try:
        message = Message(f"list {map_}", _GETSETELEM, NLM_F_ACK | NLM_F_DUMP, _family(_NFPROTO_INET) + names)
        answers = socket.send(message)
    except OSError as error:
        if error.errno == _ENOENT:
            return []
        raise
    found = []
    for _, answer in answers:
        for kind, listed in attributes(answer[4:]):
            for _, raw in attributes(listed) if kind == _LIST_ELEMENTS else ():
                values = dict(attributes(raw))
                key = dict(attributes(values.get(_ELEM_KEY, b""))).get(_DATA_VALUE, b"")
                found.append(_element(map_, key, values))
    return found


def add(socket: Socket, table: str, elements: Sequence[Element]) -> None:
    """Adds all elements or none. Raises FileExistsError when one of the keys is taken."""
    _batch(socket, [_adding(table, element) for element in elements])


def delete(socket: Socket, table: str, elements: Sequence[Element]) -> None:
    """Deletes all elements or none. Raises FileNotFoundError when one of them is not there."""
    _batch(socket, [_deleting(table, element) for element in elements])


def replace(socket: Socket, table: str, old: Sequence[Element], new: Sequence[Element]) -> None:
    """Deletes all of ``old`` and adds all of ``new``, or does nothing: no packet finds neither.

    Raises FileNotFoundError when one of ``old`` is not there, FileExistsError when the key of one of ``new`` is taken
    by an element that is not in ``old``.
    """
    messages = [*(_deleting(table, element) for element in old), *(_adding(table, element) for element in new)]
    if not messages:
        return
    # A refused message is answered in any case; acknowledgements of some hundred would not fit the socket's buffer.
    last = messages[-1:]
    _batch(socket, [*(message._replace(flags=message.flags & ~NLM_F_ACK) for message in messages[:-1]), *last])


def _adding(table: str, element: Element) -> Message:
    doing = f"add to {element.map} of table {table}"
    flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    return Message(doing, _NEWSETELEM, flags, _list(table, element.map, [_spelled(element)]))


def _deleting(table: str, element: Element) -> Message:
    doing = f"delete from {element.map} of table {table}"
    key = nested(_LIST_ELEM, _value(_ELEM_KEY, element.key))
    return Message(doing, _DELSETELEM, NLM_F_ACK, _list(table, element.map, [key]))


def _batch(socket: Socket, messages: Sequence[Message]) -> None:
    """One transaction of nf_tables."""
    body = _FAMILY.pack(_NFPROTO_UNSPEC, 0) + _RESOURCE.pack(_SUBSYSTEM)
    begin = Message("begin a transaction", _BATCH_BEGIN, 0, body)
    socket.send(begin, *messages, Message("commit a transaction", _BATCH_END, 0, body))


def _family(family: int) -> bytes:
    return _FAMILY.pack(family, 0) + _RESOURCE.pack(0)


def _text(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")


def _value(kind: int, raw: bytes) -> bytes:
    return nested(kind, attribute(_DATA_VALUE, raw))


def _list(table: str, map_: str, elements: Sequence[bytes]) -> bytes:
    names = _text(_LIST_TABLE, table) + _text(_LIST_SET, map_)
    return _family(_NFPROTO_INET) + names + nested(_LIST_ELEMENTS, *elements)


def _spelled(element: Element) -> bytes:
    parts = [_value(_ELEM_KEY, element.key)]
    if element.value:
        parts.append(_value(_ELEM_DATA, element.value))
    if element.timeout:
        parts.append(attribute(_ELEM_TIMEOUT, element.timeout.to_bytes(8, "big")))
    if element.comment:
        comment = element.comment.encode() + b"\0"
        parts.append(attribute(_ELEM_USERDATA, bytes([_UDATA_COMMENT, len(comment)]) + comment))
    return nested(_LIST_ELEM, *parts)


def _element(map_: str, key: bytes, values: dict[int, bytes]) -> Element:
    value = dict(attributes(values.get(_ELEM_DATA, b""))).get(_DATA_VALUE, b"")
    userdata = values.get(_ELEM_USERDATA, b"")
    comment = userdata[2 : 2 + userdata[1]] if userdata[:1] == bytes([_UDATA_COMMENT]) and len(userdata) > 1 else b""
    timeout = int.from_bytes(values.get(_ELEM_TIMEOUT, b""), "big")
    return Element(map_, key, value, comment.rstrip(b"\0").decode(errors="replace"), timeout)
