"""How soon a connection to an ambassador tries again: an eBPF program of the container's cgroup, without a library.

TCP sends its first SYN again after a second (RFC 6298). A client of a service that is moving would wait that long; with
this it waits 50 ms. Other connections keep their second. Numbers are those of <linux/bpf.h>.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time
from struct import Struct

from podrun_hooks.registry.record import packed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PROG_LOAD, _PROG_ATTACH = 5, 8
_PROG_TYPE_SOCK_OPS, _CGROUP_SOCK_OPS, _F_ALLOW_MULTI = 13, 3, 2
_TIMEOUT_INIT, _TCP_CONNECT_CB = 1, 3  # BPF_SOCK_OPS_*
_IPPROTO_TCP, _TCP_SYNCNT, _HELPER_SETSOCKOPT = 6, 7, 49
#: The longest pause (Linux 6.15, at least a second): without it each pause is twice the one before.
_TCP_RTO_MAX_MS = 44
#: Offsets in struct bpf_sock_ops.
_OP, _REPLY, _REMOTE_IP4 = 0, 4, 24
#: Opcodes.
_MOV, _MOV_IMMEDIATE, _ADD, _LOAD, _STORE, _STORE_IMMEDIATE = 0xBF, 0xB7, 0x07, 0x61, 0x63, 0x62
_JUMP_EQUAL_32, _JUMP, _CALL, _EXIT = 0x16, 0x05, 0x85, 0x95
_CLOCK_MONOTONIC_COARSE = 6
#: tcp_syn_linear_timeouts, as the ambassador sets it: how many retransmissions come at an even pace (Linux 6.5).
LINEAR = 20

_INSTRUCTION = Struct("=BBhi")
_LOADING = Struct("=IIQQIIQII16sII")
_ATTACHING = Struct("=IIII")
_SYSTEM_CALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361, "armv7l": 386}


def attach(cgroup: str, timers: Mapping[str, Sequence[int]]) -> str:
    """Sets the timers of a cgroup (v2, its directory); "" when it is done, else why it is not.

    ``timers``: addresses, each with milliseconds until the first retransmission and seconds that it goes on for.
    """
    number = _SYSTEM_CALL.get(os.uname().machine)
    if number is None:
        return f"the number of bpf(2) is not known for {os.uname().machine}"
    code = program([(packed(address), milliseconds, seconds) for address, (milliseconds, seconds) in timers.items()])
    instructions, license_ = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    loaded = -1
    try:
        where = (len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(license_))
        attributes = _LOADING.pack(_PROG_TYPE_SOCK_OPS, *where, 0, 0, 0, 0, 0, b"podrun_syn", 0, _CGROUP_SOCK_OPS)
        loaded = _bpf(number, _PROG_LOAD, attributes)
        _bpf(number, _PROG_ATTACH, _ATTACHING.pack(fd, loaded, _CGROUP_SOCK_OPS, _F_ALLOW_MULTI))
    except OSError as error:
        return f"bpf(2): {error.strerror}"
    finally:
        os.close(fd)
        if loaded >= 0:
            os.close(loaded)
    return ""


def retries(milliseconds: int, seconds: int) -> int:
    """How often a SYN is sent again within so many seconds: each pause twice the one before, or one second."""
    count, total = 1, milliseconds
    while total < seconds * 1000 and count < 60:
        total += milliseconds << count
        count += 1
    return min(127, max(count + 1, seconds + LINEAR))


def program(timers: Sequence[tuple[bytes, int, int]]) -> bytes:
    """The program: for each address (4 bytes) its first pause, and for how many seconds TCP tries."""
    tick = time.clock_getres(_CLOCK_MONOTONIC_COARSE)
    code = [
        _instruction(_MOV, 6, 1),
        _instruction(_LOAD, 2, 6, _OP),
        _instruction(_LOAD, 3, 6, _REMOTE_IP4),
    ]
    done = [_instruction(_MOV_IMMEDIATE, 0, 0, 0, 1), _instruction(_EXIT)]
    for address, milliseconds, seconds in timers:
        # The field is in network order, as a number of the machine's.
        wanted = int.from_bytes(address, sys.byteorder, signed=True)
        starting = [
            _instruction(_MOV_IMMEDIATE, 4, 0, 0, max(1, round(milliseconds / 1000 / tick))),
            _instruction(_STORE, 6, 4, _REPLY),
            *done,
        ]
        connecting = [*_set(_TCP_SYNCNT, retries(milliseconds, seconds)), *_set(_TCP_RTO_MAX_MS, 1000), *done]
        act = [
            _instruction(_JUMP_EQUAL_32, 2, 0, 2, _TIMEOUT_INIT),
            _instruction(_JUMP_EQUAL_32, 2, 0, 1 + len(starting), _TCP_CONNECT_CB),
            _instruction(_JUMP, 0, 0, len(starting) + len(connecting)),
            *starting,
            *connecting,
        ]
        code += [_instruction(_JUMP_EQUAL_32, 3, 0, 1, wanted), _instruction(_JUMP, 0, 0, len(act)), *act]
    return b"".join([*code, *done])


def _set(option: int, value: int) -> list[bytes]:
    """setsockopt(2) of an option of TCP; one that the kernel does not know does nothing."""
    return [
        _instruction(_STORE_IMMEDIATE, 10, 0, -4, value),
        _instruction(_MOV, 1, 6),
        _instruction(_MOV_IMMEDIATE, 2, 0, 0, _IPPROTO_TCP),
        _instruction(_MOV_IMMEDIATE, 3, 0, 0, option),
        _instruction(_MOV, 4, 10),
        _instruction(_ADD, 4, 0, 0, -4),
        _instruction(_MOV_IMMEDIATE, 5, 0, 0, 4),
        _instruction(_CALL, 0, 0, 0, _HELPER_SETSOCKOPT),
    ]


def _instruction(code: int, target: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return _INSTRUCTION.pack(code, target | source << 4, offset, immediate)


def _bpf(number: int, command: int, attributes: bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    # The kernel's structure is longer in later versions; what is not given has to be zero.
    attributes += bytes(144 - len(attributes))
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result: int = libc.syscall(ctypes.c_long(number), ctypes.c_long(command), buffer, ctypes.c_long(len(attributes)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code) if code in errno.errorcode else f"errno {code}")
    return result
