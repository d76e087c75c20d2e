"""The pod's own HAProxy as an ambassador: a resident step, for requests that are to survive a backend's end.

One process in the pod's network namespace, without privileges. Its servers are slots whose addresses are changed over
its runtime socket; nothing is reloaded. Without a backend the last one stays, and HAProxy tries it again every second.
"""

from __future__ import annotations

import os
import select
import time

from podrun import atomic
from podrun.errors import STEP_FAILED, Failure
from podrun.hook import Facts
from podrun_hooks.registry import source as sources
from podrun_hooks.registry import wishes
from podrun_hooks.registry.wishes import Ambassador
from podrun_hooks.support import rooted_tree, subprocesses, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Iterator, Sequence

    from podrun.hook import Step
    from podrun_hooks.ambassador.targets import Target
else:
    import _signal

#: The largest number of backends at once.
SLOTS = 16
#: Seconds that HAProxy may take to start, and to answer.
_START, _ANSWER = 5.0, 2.0
#: An address that nobody has (RFC 5737): until a backend is known, connecting times out and is tried again.
_NOWHERE = "192.0.2.1"

_CONFIGURATION = """global
    maxconn 4096
    user nobody
    group nogroup
    nbthread 1
    stats socket {socket} mode 600 level admin
defaults
    mode {mode}
    timeout client 1h
    timeout server 1h
    timeout connect 1s
    timeout queue {hold}s
    retries {hold}
    option redispatch 1
{more}listen service
    bind {address}:{port}
    balance {balance}
    default-server tcp-ut 30s
    server-template s 1-{slots} {nowhere}:9 disabled
"""
# The client's connection is kept, the server's is not: HAProxy waits a second between two attempts to connect, but not
# after one on a kept connection: then all retries are over within 40 ms (back_handle_st_cer() in backend.c).
_HTTP = """    retry-on conn-failure empty-response response-timeout 0rtt-rejected
    option http-server-close
"""


def up(step: Step, facts: Facts) -> Facts:
    """Starts HAProxy in the pod's network, with the backends that the registry names."""
    from podrun_hooks import ambassador

    options = step.options
    netns = facts["netns"]
    wish = _wish(step, facts, netns)
    _end(step)  # of a start that was killed
    _write(step, wish)
    pid, go = _start(step, netns)
    try:
        started = _start_time(pid)
        step.announce(pid)
        os.write(go, b"1")
        _await(pid, wish.place)
        _ask(wish.place, "set server service/s1 state ready")
        wishes.write(step.pod.run, wish)
        backends = ambassador.follow(step, wish)
    except BaseException:
        syscalls.end(pid)
        raise
    finally:
        os.close(go)
    step.status(f"{options.service} is at {wish.address}:{wish.port}")
    return {**ambassador.told(step, facts, wish, backends), "process": {"pid": pid, "start": started}}


def down(step: Step, own: Facts) -> None:
    """Ends HAProxy: with ``drain`` softly (SIGUSR1: no new connections, it exits after the last one), else at once."""
    process = own.get("process")
    if process and step.options.drain and _start_time(process["pid"]) == process["start"]:
        _send(process["pid"], process["start"], 10)
        deadline = time.monotonic() + step.options.drain
        step.status(f"draining {step.options.service} for {step.options.drain:g} s")
        while time.monotonic() < deadline and _start_time(process["pid"]) == process["start"]:
            _reap(process["pid"])
            time.sleep(0.02)
    _end(step)
    directory, _, socket = _socket_path(step).rpartition("/")
    # HAProxy binds to SOCKET.PID.tmp, moves SOCKET.PID.bak out of the way, and may have been killed then.
    unfinished = [f"{directory}/{name}" for name in rooted_tree.names(directory) if name.startswith(f"{socket}.")]
    for path in (_file(step), _log(step), _socket_path(step), *unfinished):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def switch(wish: Ambassador, targets: Sequence[Target]) -> None:
    """Makes ``targets`` the backends; open connections go on. Raises OSError when HAProxy cannot be told."""
    if not targets:
        return
    slots = list(_slots(_ask(wish.place, "show servers state service")))
    # 256 is HAProxy's largest weight: several records of one place may add up to more.
    weights = {(target.addr, target.port): min(target.weight, 256) for target in targets[:SLOTS]}
    kept = {name: place for name, place, used in slots if used and place in weights}
    free = [name for name, _, _ in slots if name not in kept]
    missing = [place for place in weights if place not in kept.values()]
    lines = [f"set server service/{name} weight {weights[place]}" for name, place in kept.items()]
    taken = []
    # A slot that was not in use first: connections that are open belong to the others.
    used = {name for name, _, is_used in slots if is_used}
    for (addr, port), name in zip(missing, sorted(free, key=lambda name: name in used), strict=False):
        server = f"set server service/{name}"
        lines += [
            f"{server} addr {addr} port {port}",
            f"{server} weight {weights[addr, port]}",
            f"{server} state ready",
        ]
        taken.append(name)
    lines += [f"set server service/{name} state maint" for name in free if name in used and name not in taken]
    for at in range(0, len(lines), 20):
        _ask(wish.place, "; ".join(lines[at : at + 20]))


def _slots(answer: str) -> Iterator[tuple[str, tuple[str, int], bool]]:
    """Name, address and port, and whether it is in use, of each server ("show servers state" in management.txt)."""
    lines = answer.splitlines()
    header = next((line[2:].split() for line in lines if line.startswith("# ")), [])
    for line in lines:
        words = dict(zip(header, line.split(), strict=False))
        if not line.startswith("#") and len(words) == len(header) and words.get("srv_name", "").startswith("s"):
            in_maintenance = int(words["srv_admin_state"]) & 1
            nowhere = words["srv_addr"] == _NOWHERE
            yield words["srv_name"], (words["srv_addr"], int(words["srv_port"])), not in_maintenance and not nowhere


def _wish(step: Step, facts: Facts, netns: str) -> Ambassador:
    from podrun_hooks.ambassador import listing
    from podrun_hooks.network import bridge

    options = step.options
    own = [text.partition("/")[0] for text in facts.get("addresses") or ()]
    return Ambassador(
        step.pod.name, step.name, sources.resolved(options.registry, step.pod.run), options.service, "haproxy", netns,
        0, _socket_path(step), options.proto, options.address or "127.0.0.1", options.port, options.hold,
        options.balance, own, bridge.table(step.pod), listing.begin(step),
    )  # fmt: skip


# --- the process ---------------------------------------------------------------------------------------------------


def _file(step: Step) -> str:
    return f"{step.pod.directory}/{step.name}.haproxy"


def _log(step: Step) -> str:
    return f"{step.pod.directory}/{step.name}.haproxy.log"


def _socket_path(step: Step) -> str:
    """Short: sun_path holds 108 bytes, and HAProxy binds to a name beside it first."""
    from _blake2 import blake2s

    name = blake2s(f"{step.pod.name}/{step.name}".encode(), digest_size=6).hexdigest()
    return f"{wishes.directory(step.pod.run)}/{name}"


def _write(step: Step, wish: Ambassador) -> None:
    options = step.options
    hold = max(1, min(int(options.hold), 86400)) if options.hold < float("inf") else 86400
    text = _CONFIGURATION.format(
        socket=wish.place,
        mode=options.mode,
        hold=hold,
        more=_HTTP if options.mode == "http" else "",
        address=wish.address,
        port=wish.port,
        balance="source" if options.balance == "source" else "random",
        slots=SLOTS,
        nowhere=_NOWHERE,
    )
    os.makedirs(wishes.directory(step.pod.run), mode=0o700, exist_ok=True)
    atomic.replace(_file(step), text)


def _start(step: Step, netns: str) -> tuple[int, int]:
    """Its pid, and a descriptor that a byte is written to when that is in the journal.

    It begins only then: until it runs ``down`` could not find it by its command line. It ends when podrun is killed.
    """
    program = subprocesses.find("haproxy", "haproxy")
    argv = [program, "-db", "-f", _file(step)]
    wait, go = os.pipe2(os.O_CLOEXEC)
    child = syscalls.fork()
    if child:
        os.close(wait)
        return child, go
    try:
        os.close(go)
        if not os.read(wait, 1):
            os._exit(125)
        os.setsid()
        syscalls.heed_signals()
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, 0)
        if not step.pod.attached:
            os.dup2(
                os.open(_log(step), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), 2
            )
        os.dup2(2, 1)
        if netns != "host":
            syscalls.setns(os.open(netns, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), syscalls.CLONE_NEWNET)
        syscalls.close_on_exec_from(3)
        os.execve(program, argv, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    except BaseException as error:
        os.write(2, f"podrun: {program}: {error}\n".encode(errors="replace"))
    finally:
        os._exit(125)


def _await(pid: int, path: str) -> None:
    """Returns when HAProxy answers on its socket. Raises Failure when it ends instead."""
    deadline = time.monotonic() + _START
    while True:
        try:
            _ask(path, "show info")
            return
        except OSError:
            pass
        if _reap(pid):
            hint = "its output says why; is the port in use in the pod?"
            raise Failure("HAProxy ended as soon as it was started", code=STEP_FAILED, hint=hint)
        if time.monotonic() > deadline:
            raise Failure(f"HAProxy does not answer within {_START:g} s", code=STEP_FAILED)
        time.sleep(0.01)


def _reap(pid: int) -> bool:
    """True when HAProxy has ended; a ``down`` in another podrun is not its parent."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return not os.path.exists(f"/proc/{pid}")


def _end(step: Step) -> None:
    """Kills every HAProxy of this step, found by its command line: whoever started it may have been killed."""
    for pid in _found(step):
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + 5
    while list(_found(step)) and time.monotonic() < deadline:
        time.sleep(0.002)


def _found(step: Step) -> Iterator[int]:
    wanted = [b"-db", b"-f", os.fsencode(_file(step))]
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}"):
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
                if words[0].endswith(b"/haproxy") and words[1:4] == wanted:
                    yield int(name)
        except OSError:
            continue


def _start_time(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def _send(pid: int, start: int, number: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if _start_time(pid) == start:
            _signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)


# --- its runtime socket --------------------------------------------------------------------------------------------


def _ask(path: str, commands: str) -> str:
    """HAProxy's answer to commands, separated by ";". Raises OSError."""
    import _socket

    deadline = time.monotonic() + _ANSWER
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(_ANSWER)
        sock.connect(path)
        sock.sendall(f"{commands}\n".encode())
        answer = b""
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        while len(answer) < 1 << 20 and poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            part = sock.recv(65536)
            if not part:
                return answer.decode(errors="replace")
            answer += part
        raise TimeoutError(110, "HAProxy does not answer", path)
    finally:
        sock.close()
