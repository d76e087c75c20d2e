"""The follower's one loop: renews leases, writes deferred records, polls registries, brings changes to pods.

It is outside the data path: when it dies nothing moves and nothing breaks, but it has to be back within the TTL.
Between two polls it holds no descriptor of a pod's namespace, which would keep that alive.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import sys
import time

from podrun import libc
from podrun.errors import Failure
from podrun_hooks.ambassador import reach
from podrun_hooks.follow import begin
from podrun_hooks.registry import bell, connect, wishes
from podrun_hooks.registry.http import Away, Refused
from podrun_hooks.registry.wishes import Ambassador, Registration
from podrun_hooks.support import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    import socket as _socket
    from collections.abc import Callable, Sequence

    from podrun_hooks.ambassador.maps import Lost
    from podrun_hooks.registry.record import Record
    from podrun_hooks.registry.source import Source
    from podrun_hooks.registry.wishes import Leases
else:
    import _signal
    import _socket

#: Seconds from one poll to the next: where the registry tells of changes (registry/bell.py), and where it does not.
POLL_HEARING, POLL = 1.0, 0.2
#: The least seconds between two polls that changes call for, doubled up to POLL while changes go on.
_LEAST = 0.03
#: Seconds that one call may take, and the longest pause after one that failed.
_CALL, _PAUSE = 1.5, 5.0
#: How often a lease is renewed within its TTL, and at every which renewal its records are compared.
_RENEWALS, _REPAIR_EVERY = 3, 4
#: Seconds without a wish after which a follower that is no unit ends.
_LINGER = 2.0
#: Seconds without a sign of life after which systemd starts another follower: half of the shortest TTL, so that the
#: lease, renewed every third of it, does not end meanwhile; but longer than what one call may take, twice.
_SHORTEST = 3.0
#: How often, how long and how far apart a lost backend is tried before its host counts as vanished.
_CALLS, _PATIENCE, _APART = 2, 1.0, 0.5


#: Seconds after a move at which connections that it overtook are looked for.
_AGAIN = (0.1, 0.4, 1.0)


class Followed:
    """One registry, and what the pods of this host want of it."""

    def __init__(self, source: Source, run: str, alive: Callable[[], None] = lambda: None) -> None:
        self.source = source
        self.client = connect(source)
        self.client.report(alive)
        self.alive = alive
        self.leases: Leases = wishes.Leases(run)
        self.run = run
        self.registrations: list[Registration] = []
        self.ambassadors: list[Ambassador] = []
        #: What is known of the services that are followed.
        self.records: dict[str, list[Record]] = {}
        #: The ambassadors that know of it.
        self.led: set[tuple[object, ...]] = set()
        #: Which file each ambassador's wish is.
        self.stamps: dict[tuple[object, ...], int] = {}
        #: Records as they have been written, by key.
        self.written: dict[str, Record] = {}
        self.next_poll = self.last_poll = 0.0
        #: Seconds until the next poll that a change may call for, and whether one has called since the last poll.
        self.apart = _LEAST
        self.rung = False
        self.next_keep: dict[float, float] = {}
        self.kept = 0
        self.trouble = ""
        self.pause = 0.0

    def wants(self, registrations: list[Registration], ambassadors: list[Ambassador]) -> None:
        """Takes over what the wishes say now."""
        self.registrations, self.ambassadors = registrations, ambassadors
        stamps = {_identity(wish): wishes.stamp_of(self.run, wish) for wish in ambassadors}
        # A step that has written its wish once more has led the pod itself meanwhile, by what it knew.
        self.led = {one for one in self.led if one in stamps and stamps[one] == self.stamps.get(one)}
        self.stamps = stamps
        keys = {wish.record.key for wish in registrations}
        self.written = {key: record for key, record in self.written.items() if key in keys}
        if any(self.written.get(wish.record.key) != wish.record for wish in registrations):
            self.next_keep = {}
        if len(self.led) != len(ambassadors):
            self.next_poll = 0.0

    def due(self) -> float:
        """When it wants to act next, on the monotonic clock."""
        ttls = {wish.ttl for wish in self.registrations}
        return min([self.next_poll, *(self.next_keep.get(ttl, 0.0) for ttl in ttls)])

    def hear(self, now: float) -> None:
        """Polls at once when the registry has told of a change."""
        if not self.rung and self.client.bell.rings(now):
            self.rung = True
            self.next_poll = min(self.next_poll, self.last_poll + self.apart)

    def act(self, now: float) -> list[tuple[Ambassador, Lost]]:
        """Does what is due; returns the backends that pods no longer have. What fails is told once."""
        lost: list[tuple[Ambassador, Lost]] = []
        try:
            for ttl in {wish.ttl for wish in self.registrations}:
                if now >= self.next_keep.get(ttl, 0.0):
                    self._keep(ttl)
                    self.next_keep[ttl] = now + ttl / _RENEWALS
            if now >= self.next_poll:
                self.apart = min(self.apart * 2, POLL) if self.rung and now - self.last_poll < 1.0 else _LEAST
                self.last_poll = now
                lost = self._poll()
        except (Away, Refused) as error:
            self.client.bell.close()  # perhaps that of a member that has gone
            self.pause = min(max(POLL, self.pause * 2), _PAUSE)
            self.next_poll = time.monotonic() + self.pause
            self.next_keep = {wish.ttl: self.next_poll for wish in self.registrations}
            if not self.trouble:
                say(f"{self.source.url}: {error}; records end with their leases, nothing else changes")
            self.trouble = str(error)
            return lost
        if self.trouble:
            say(f"{self.source.url}: it answers again")
        self.trouble, self.pause = "", 0.0
        return lost

    def _keep(self, ttl: float) -> None:
        mine = [wish for wish in self.registrations if wish.ttl == ttl]
        self.kept += 1
        repair = self.kept % _REPAIR_EVERY == 1 or bool(self.trouble)
        records = {wish.record.key: wish.record for wish in mine}
        done = self.client.keep(
            ttl, records, self.leases, seconds=_CALL, repair=repair, orphaned=lambda key: not self._is_wished(key)
        )
        for line in done:
            say(f"{self.source.url}: {line}")
        for wish in mine:
            if self.written.get(wish.record.key) == wish.record:
                continue
            taken = self.client.announce(wish.record, ttl, self.leases, seconds=_CALL, only_new=not wish.deferred)
            self.written[wish.record.key] = wish.record
            current = wishes.read(self.run, wish.pod, wish.step)
            if not isinstance(current, Registration) or current.record.gen != wish.record.gen:
                # The pod has ended meanwhile: its ``down`` did not find the record that was written just now.
                self.client.withdraw(wish.record.service, wish.record.id, wish.record.gen, seconds=_CALL)
            elif wish.deferred and taken:
                wishes.write(self.run, current._replace(deferred=False))
                say(f"{self.source.url}: registered {wish.record.key}, which was deferred")

    def _is_wished(self, key: str) -> bool:
        """Whether a step wants the record now: it may have written its wish, which comes first, since the last look."""
        return any(
            isinstance(wish, Registration) and wish.source == self.source and wish.record.key == key
            for wish in wishes.each(self.run)
        )

    def _poll(self) -> list[tuple[Ambassador, Lost]]:
        services = {wish.service for wish in self.ambassadors}
        if not services:
            self.client.bell.close()
            self.next_poll = self.last_poll + _PAUSE
            return []
        changed = self.client.poll(services, seconds=_CALL)
        for line in self.client.oversized.news():
            say(f"{self.source.url}: {line}")
        if changed and not self.rung:
            self.client.bell.close()  # it should have rung
        self.client.listen(self.last_poll)
        self.rung = False
        self.next_poll = self.last_poll + (POLL_HEARING if self.client.bell.listens else POLL)
        self.records = {service: found for service, found in self.records.items() if service in services}
        self.records.update(changed)
        wanted = [
            wish
            for wish in self.ambassadors
            if wish.service in self.records and (wish.service in changed or _identity(wish) not in self.led)
        ]
        lost = reach.lead(self.run, [(wish, self.records[wish.service]) for wish in wanted], say, self.alive)
        if changed or wanted:
            _give_back()
        self.led |= {_identity(wish) for wish in wanted}
        return lost


def _identity(wish: Ambassador) -> tuple[object, ...]:
    return (wish.pod, wish.step, wish.inode, wish.place, wish.service, wish.port)


# --- backends whose host has vanished ------------------------------------------------------------------------------


class Suspect:
    """A backend that a pod no longer has: the follower calls it, and silence means that its host has vanished."""

    def __init__(self, wish: Ambassador, lost: Lost) -> None:
        self.wish, self.lost = wish, lost
        self.silences = 0
        self.next_call = 0.0
        self.until = 0.0
        self.socket: _socket.socket | None = None

    def act(self, now: float) -> str:
        """What became of it: "answers", "vanished", or "" while that is not known."""
        if self.socket is None:
            if now < self.next_call:
                return ""
            self.socket = _socket.socket(
                _socket.AF_INET, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
            )
            port = int.from_bytes(self.lost.backend_port, "big")
            code = self.socket.connect_ex((_socket.inet_ntop(_socket.AF_INET, self.lost.backend), port))
            self.until = now + _PATIENCE
            return self._told(code, now) if code != errno.EINPROGRESS else ""
        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLOUT)
        if poll.poll(0):
            return self._told(self.socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR), now)
        return self._told(errno.ETIMEDOUT, now) if now >= self.until else ""

    def _told(self, code: int, now: float) -> str:
        self.close()
        if code in (0, errno.ECONNREFUSED, errno.ECONNRESET):
            return "answers"
        self.silences += 1
        self.next_call = now + _APART
        return "vanished" if self.silences >= _CALLS else ""

    def close(self) -> None:
        """Closes its socket."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None


# --- the process ---------------------------------------------------------------------------------------------------


class Follower:
    """All registries of one run directory."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.followed: dict[Source, Followed] = {}
        self.suspects: list[Suspect] = []
        #: Backends whose connections are looked for once more, and when.
        self.lost: list[tuple[float, list[tuple[Ambassador, Lost]]]] = []
        self._stamp = -1
        self._told = 0.0
        self._settled = False
        self._read = 0.0

    def look(self, now: float) -> bool:
        """Reads the wishes when they have changed; True while there are any that need a follower."""
        stamp = wishes.stamp(self.run)
        if stamp == self._stamp and (self._settled or now - self._read < 1.0):
            return bool(self.followed)
        # What is written within the same tick of the clock as this look has the same time.
        self._settled = time.time() - stamp / 1e9 > 0.1
        self._stamp, self._read = stamp, now
        known: dict[tuple[str, str], Registration | Ambassador] = {}
        for followed in self.followed.values():
            known |= {(one.pod, one.step): one for one in followed.registrations}
            known |= {(one.pod, one.step): one for one in followed.ambassadors}
        found: list[Registration | Ambassador] = []
        for wish in wishes.each(self.run):
            if wish.source.has_server:
                # The object that is there already: no second copy of a hundred pods' wishes is left behind.
                before = known.get((wish.pod, wish.step))
                found.append(before if before == wish and before is not None else wish)
        sources = {wish.source for wish in found}
        for gone in set(self.followed) - sources:
            self.followed.pop(gone).client.close()
            wishes.Leases(self.run).forget(gone)
        for source in sources:
            if source not in self.followed:
                self.followed[source] = Followed(source, self.run, self.alive)
            mine = [wish for wish in found if wish.source == source]
            self.followed[source].wants(
                [wish for wish in mine if isinstance(wish, Registration)],
                [wish for wish in mine if isinstance(wish, Ambassador)],
            )
        _give_back()
        shortest = min([wish.ttl for wish in found if isinstance(wish, Registration)], default=2 * begin.WATCHDOG)
        notify(f"WATCHDOG_USEC={int(1e6 * min(begin.WATCHDOG, max(_SHORTEST, shortest / 2)))}")
        return bool(found)

    def alive(self) -> None:
        """Tells systemd's watchdog, once a second at most, that the follower goes on."""
        now = time.monotonic()
        if now - self._told >= 1.0:
            notify("WATCHDOG=1")
            self._told = now

    def act(self, now: float) -> None:
        """Does what is due."""
        for followed in self.followed.values():
            followed.hear(now)
            if now >= followed.due():
                gone = [(wish, lost) for wish, lost in followed.act(now) if lost.proto == 6]
                self.suspects += [Suspect(wish, lost) for wish, lost in gone]
                self.lost += [(now + later, gone) for later in _AGAIN if gone]
        for at, gone in self.lost:
            if now >= at:
                reach.forget([(wish, lost) for wish, lost in gone if wish.via == "nft"])
        self.lost = [(at, gone) for at, gone in self.lost if now < at]
        self._ask(now)

    def _ask(self, now: float) -> None:
        verdicts = [(suspect, suspect.act(now)) for suspect in self.suspects]
        vanished = [(suspect.wish, suspect.lost) for suspect, verdict in verdicts if verdict == "vanished"]
        if vanished:
            ended = reach.end(vanished)
            if ended:
                say(f"{vanished[0][0].service}: ended {ended} connections to a host that has vanished")
        self.suspects = [suspect for suspect, verdict in verdicts if not verdict]

    def sleep(self, now: float) -> None:
        """Returns when something is due, a registry tells of a change, or it is time to look at the wishes."""
        soonest = min([followed.due() for followed in self.followed.values()], default=now + POLL * 2)
        seconds = (
            0.05 if self.suspects or self.lost else max(0.0, min(soonest - now, POLL if self.followed else POLL * 2))
        )
        listening = [followed.client.bell for followed in self.followed.values() if not followed.rung]
        bell.wait([fd for one in listening for fd in one.descriptors()], seconds)


def main(words: Sequence[str]) -> None:
    """Follows until it is told to end or no longer needed; arguments: RUN KIND (unit, sidekick, foreground)."""
    run, kind = words
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # no core dump: it holds passwords of registries
    ending: list[int] = []
    for number in (_signal.SIGTERM, _signal.SIGINT):
        _signal.signal(number, lambda number, _: ending.append(number))
    os.makedirs(wishes.directory(run), mode=0o700, exist_ok=True)
    lock = os.open(begin.lock_of(run), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    notify("READY=1")
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            notify("STATUS=another one follows\nWATCHDOG=1")
            time.sleep(0.5)
            if ending or (kind == "foreground" and os.getppid() == 1):
                return
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{kind}\n".encode(), 0)
    follower = Follower(run)
    needed = time.monotonic()
    while not ending:
        now = time.monotonic()
        if follower.look(now):
            needed = now
        elif kind != "unit" and now - needed > _LINGER:
            return
        try:
            follower.act(now)
        except (Failure, OSError) as error:
            # A full disk or a lack of descriptors does not end the follower: its next round may succeed.
            say(f"{error}")
            time.sleep(1.0)
        follower.alive()
        follower.sleep(time.monotonic())


def _give_back() -> None:
    """Has free memory go back to the kernel: 2 MB after many backends have been led to. malloc_trim(3): 0.1 ms."""
    try:
        libc.function("malloc_trim")(0)
    except OSError:
        pass  # a C library without it


def become(run: str) -> None:
    """Replaces the process by a follower that has nothing of podrun's launcher in it. Does not return."""
    argv = begin.command(run, "unit")
    os.execve(argv[0], argv, os.environ)


def say(line: str) -> None:
    """A line for the journal."""
    plain = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)
    try:
        os.write(2, f"podrun: follow: {plain}\n".encode(errors="replace"))
    except OSError:
        pass


def notify(assignments: str) -> None:
    """sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        sock.sendto(assignments.encode(), "\0" + address[1:] if address.startswith("@") else address)
    except OSError:
        pass
    finally:
        sock.close()


if __name__ == "__main__":
    main(sys.argv[1:])
