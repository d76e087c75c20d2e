"""The socket for sd_notify(3) that a payload gets with ``ready = { notify = ... }``: made, and later handed over."""

from __future__ import annotations

import os
import sys

from podrun.errors import UNAVAILABLE, Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from podrun.hook import Step
    from podrun_hooks.container.paths import Place

#: <asm-generic/socket.h>, <linux/filter.h>: the classic BPF program "return 0" keeps nothing of a datagram.
_SO_ATTACH_FILTER, _SO_LOCK_FILTER, _RETURN_NOTHING = 26, 44, b"\x06\0\0\0\0\0\0\0"


def opened(step: Step, place: Place) -> Any:
    """A socket that any user of the container may write to. "direct" prepares a second name of systemd's, too.

    Raises Failure (UNAVAILABLE) when that is impossible.
    """
    import _socket

    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    path = f"{place.notify}/socket"
    for left in (path, place.direct):
        try:
            os.unlink(left)
        except FileNotFoundError:
            pass
    try:
        os.mkdir(place.notify, 0o755)
    except FileExistsError:
        pass
    os.chmod(place.notify, 0o755)
    directory = os.open(place.notify, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # sun_path holds 108 bytes; names of pods and containers may be longer together.
        sock.bind(f"/proc/self/fd/{directory}/socket")
    finally:
        os.close(directory)
    os.chmod(path, 0o666)
    systemd = os.environ.get("NOTIFY_SOCKET", "")
    if step.options.ready.notify == "direct" and step.pod.unit and systemd:
        try:
            os.link(systemd, place.direct)
        except OSError as error:
            what = f"notify = 'direct': {systemd} cannot have a name in {place.bundle}: {error.strerror}"
            raise Failure(what, code=UNAVAILABLE, hint="both have to be on one file system, /run") from None
    return sock


def hand_over(sock: Any, place: Place) -> None:
    """The payload is ready: from here on systemd hears it ("direct"), or nobody does."""
    if os.path.lexists(place.direct):
        os.rename(place.direct, f"{place.notify}/socket")
    else:
        _deafen(sock)


def _deafen(sock: Any) -> None:
    """From here on the kernel drops what comes to the socket, and the sender hears of a success.

    A payload goes on sending after READY=1: STATUS=, STOPPING=, and sd_notify_barrier(3)'s descriptor, whose end it
    waits for. The socket stays open, without anybody to read it, as long as podrun or a copier of the output runs.
    """
    import _socket
    import ctypes

    program = ctypes.create_string_buffer(_RETURN_NOTHING, len(_RETURN_NOTHING))
    # struct sock_fprog: the number of instructions, padding, their address.
    filter = (1).to_bytes(ctypes.sizeof(ctypes.c_void_p), sys.byteorder)
    filter += ctypes.addressof(program).to_bytes(ctypes.sizeof(ctypes.c_void_p), sys.byteorder)
    sock.setsockopt(_socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter)
    sock.setsockopt(_socket.SOL_SOCKET, _SO_LOCK_FILTER, 1)
    sock.setblocking(False)
    try:
        while True:
            sock.recv(1)  # what came before the filter; recv(2) closes the descriptors in it
    except BlockingIOError:
        pass
    sock.detach()
