"""etcd v3 through its JSON gateway (``/v3/...``): records under one lease a host, and a poll that costs one small read.

What the gateway does to the gRPC messages: 64-bit integers are strings, fields that are zero are left out, keys and
values are base64. A keep-alive of a dead lease is answered with 200, without a TTL.
"""

from __future__ import annotations

import time
from binascii import Error as NotBase64
from binascii import a2b_base64, b2a_base64

from podrun import jsontext
from podrun.hook import Wrong
from podrun_hooks.registry.bell import Bell, Request
from podrun_hooks.registry.http import Away, Client, Refused, TooLarge, password
from podrun_hooks.registry.oversized import Oversized
from podrun_hooks.registry.record import MOST, PREFIX, Record, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from typing import Any

    from podrun_hooks.registry.http import Answer
    from podrun_hooks.registry.source import Source
    from podrun_hooks.registry.wishes import Leases

WAITING = "/podrun/v1/wait/"
#: Never written: reading it tells the cluster's revision, and that there is a leader, for the smallest answer there is.
_NOWHERE = "/podrun/v1/none"
_NO_LEASE = "requested lease not found"


class Etcd:
    """One cluster, used by one of its users. Methods raise Away or Refused; ``seconds`` bounds each of them."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._http = Client(source)
        self.bell = Bell()
        self._token = ""
        #: The cluster's revision at the last poll, and what was known of the services then.
        self._revision = 0
        self._known: dict[str, dict[str, Record | None]] = {}
        self.oversized = Oversized()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()
        self.bell.close()

    def limit(self, seconds: float) -> None:
        """Bounds the time, in seconds, that all calls from now on may take together."""
        self._http.until = time.monotonic() + seconds

    def report(self, alive: Callable[[], None]) -> None:
        """Calls ``alive`` before each call."""
        self._http.alive = alive

    # --- records -----------------------------------------------------------------------------------------------

    def announce(self, record: Record, ttl: float, leases: Leases, *, seconds: float, only_new: bool = False) -> bool:
        """Writes a record under the host's lease of so many seconds. False: ``only_new``, and somebody else has it."""
        lease = leases.of(self.source, ttl)
        for _ in range(2):
            if not lease:
                lease = self._grant(ttl, seconds)
                leases.keep(self.source, ttl, lease)
            try:
                return self._put(record.key, record.text, lease, seconds, record.gen if only_new else None)
            except _LeaseGone:
                lease = ""
        raise Away("the lease was gone as soon as it was granted")

    def withdraw(self, service: str, identity: str, gen: str, *, seconds: float) -> bool:
        """Deletes a record, only that of this invocation; True when it was there.

        A transaction on the revision that was read: a successor that overwrites it in between stays.
        """
        key = f"{PREFIX}{service}/{identity}"
        found = _kvs(self._call("kv/range", {"key": _b64(key)}, seconds))
        if not found or _gen_of(found[0]) != gen:
            return False
        compare = {
            "key": _b64(key),
            "target": "MOD",
            "result": "EQUAL",
            "modRevision": str(found[0].get("mod_revision")),
        }
        done = self._call(
            "kv/txn", {"compare": [compare], "success": [{"requestDeleteRange": {"key": _b64(key)}}]}, seconds
        )
        return bool(done.get("succeeded"))

    def records(self, service: str, *, seconds: float, wrong: list[str] | None = None) -> list[Record]:
        """The records of a service, by id; ``wrong`` collects what is not a record, and why."""
        answer = self._call("kv/range", _range(f"{PREFIX}{service}/"), seconds)
        return sorted(_present(_read(answer, service, wrong)), key=lambda record: record.id)

    def services(self, *, seconds: float) -> list[str]:
        """The services that have a record."""
        answer = self._call("kv/range", {**_range(PREFIX), "keys_only": True, "limit": "100000"}, seconds)
        keys = [_plain(kv.get("key", "")).removeprefix(PREFIX) for kv in _kvs(answer)]
        return sorted({key.partition("/")[0] for key in keys})

    def remove(self, service: str, identity: str, *, seconds: float) -> bool:
        """Deletes a record, whoever wrote it; True when it was there."""
        answer = self._call("kv/deleterange", {"key": _b64(f"{PREFIX}{service}/{identity}")}, seconds)
        return bool(answer.get("deleted", "0") != "0")

    # --- waiting -----------------------------------------------------------------------------------------------

    def wait_begins(self, identity: str, text: str, ttl: float, leases: Leases, *, seconds: float) -> None:
        """Writes a note of what a pod waits for, or renews it: a note that is not renewed ends with its lease."""
        lease = leases.of(self.source, ttl)
        if lease and not self._renewed(lease, seconds):
            lease = ""
        for _ in range(2):
            if not lease:
                lease = self._grant(ttl, seconds)
                leases.keep(self.source, ttl, lease)
            try:
                self._put(WAITING + identity, text, lease, seconds, None)
                return
            except _LeaseGone:
                lease = ""

    def wait_ends(self, identity: str, *, seconds: float) -> None:
        """Removes the note."""
        self._call("kv/deleterange", {"key": _b64(WAITING + identity)}, seconds)

    def waiting(self, *, seconds: float) -> list[str]:
        """The notes of all waiting pods."""
        found = _kvs(self._call("kv/range", _range(WAITING), seconds))
        return [_plain(kv.get("value", "")) for kv in found]

    # --- following ---------------------------------------------------------------------------------------------

    def poll(self, services: Collection[str], *, seconds: float) -> dict[str, list[Record]]:
        """The records of those services that have changed since the last poll; all of one that is new here."""
        revision = _revision(self._call("kv/range", {"key": _b64(_NOWHERE), "count_only": True}, seconds))
        services = [service for service in services if service not in self.oversized]
        new = [service for service in services if service not in self._known]
        if revision == self._revision and not new:
            return {}
        self._known = {service: records for service, records in self._known.items() if service in services}
        if revision < self._revision:
            # Another cluster, or one that was restored from a backup.
            self._known = {}
        wanted = sorted(services)
        since = [str(self._revision + 1) if service in self._known else "0" for service in wanted]
        # etcd takes 128 operations in a transaction (--max-txn-ops).
        changed: dict[str, list[Record]] = {}
        lowest = 0
        for at in range(0, len(wanted), 100):
            part = list(zip(wanted, since, strict=True))[at : at + 100]
            for service, found, told_at in self._changes(part, seconds):
                lowest = min(lowest or told_at, told_at)
                try:
                    if self._take(service, found, seconds):
                        changed[service] = sorted(_present(self._known[service]), key=lambda record: record.id)
                    self.oversized.discard(service)
                except TooLarge as error:
                    self._pass_over(service, error)
        self._revision = lowest or revision
        return changed

    def _changes(self, wanted: Sequence[tuple[str, str]], seconds: float) -> Iterator[tuple[str, dict[str, Any], int]]:
        """Each service with what is new of it since a revision, and the cluster's revision when it was asked.

        An answer that is too large is asked for in two halves, down to the service whose it is.
        """
        try:
            answer = self._call("kv/txn", {"success": [_new_in(service, since) for service, since in wanted]}, seconds)
        except TooLarge as error:
            if len(wanted) == 1:
                self._pass_over(wanted[0][0], error)
                return
            half = len(wanted) // 2
            yield from self._changes(wanted[:half], seconds)
            yield from self._changes(wanted[half:], seconds)
            return
        told = _ranges(answer)
        if len(told) != len(wanted):
            raise Away("etcd's answer to a transaction lacks parts")
        for (service, _), found in zip(wanted, told, strict=True):
            yield service, found, _revision(answer)

    def _pass_over(self, service: str, error: TooLarge) -> None:
        self._known.pop(service, None)
        self.oversized.add(service, error)

    def listen(self, now: float) -> None:
        """Makes the bell ring for changes of the services of the last poll, from that poll on: a watch of them all."""
        services = sorted(self._known)
        since = str(self._revision + 1)
        create = [
            {"create_request": {**_keys_of(f"{PREFIX}{service}/"), "start_revision": since}} for service in services
        ]
        # One stream has a watch for each message; the answer goes on until the connection is closed.
        body = "".join(map(jsontext.dumps, create)).encode()
        headers = {"Authorization": self._token} if self._token else {}
        requests = [Request(" ".join(services), "POST", "/v3/watch", body, headers)] if services else []
        self.bell.listen(self._http, requests, now)

    def _take(self, service: str, found: Mapping[str, Any], seconds: float) -> bool:
        """Takes over a service's changes; True for any. A count that does not fit means that some records are gone."""
        first = service not in self._known
        before = self._known.get(service, {})
        after = {**before, **_read(found, service, None)}
        if _number(found.get("count", "0")) != len(after):
            after = _read(self._call("kv/range", _range(f"{PREFIX}{service}/"), seconds), service, None)
        self._known[service] = after
        return first or after != before

    def keep(
        self,
        ttl: float,
        wanted: Mapping[str, Record],
        leases: Leases,
        *,
        seconds: float,
        repair: bool,
        orphaned: Callable[[str], bool] = lambda _: True,
    ) -> list[str]:
        """Renews the host's lease; with ``repair`` it writes what is missing under it and deletes what is left over.

        ``orphaned`` is asked before a key is deleted: it may have been written since the caller looked.
        Returns what was done beside renewing, for the log.
        """
        lease = leases.of(self.source, ttl)
        alive = bool(lease) and self._renewed(lease, seconds)
        if not alive:
            lease = self._grant(ttl, seconds)
            leases.keep(self.source, ttl, lease)
        elif not repair:
            return []
        answer = self._call("lease/timetolive", {"ID": lease, "keys": True}, seconds) if alive else {}
        keys = answer.get("keys", [])
        if not isinstance(keys, list):
            raise Away("the answer does not look like etcd's")
        held = {_plain(key) for key in keys}
        done = [] if alive else ["granted a new lease"]
        for key, record in wanted.items():
            if key not in held and self._put(key, record.text, lease, seconds, record.gen):
                done.append(f"registered {key}")
        for key in sorted(held - set(wanted)):
            if key.startswith(PREFIX) and orphaned(key):
                self._call("kv/deleterange", {"key": _b64(key)}, seconds)
                done.append(f"removed {key}, which no pod of this host has")
        return done

    # --- messages ----------------------------------------------------------------------------------------------

    def _grant(self, ttl: float, seconds: float) -> str:
        return str(self._call("lease/grant", {"TTL": str(max(2, round(ttl)))}, seconds).get("ID", ""))

    def _renewed(self, lease: str, seconds: float) -> bool:
        """Renews a lease; False for one that has ended, which is answered as well, with nothing in it."""
        answer = self._call("lease/keepalive", {"ID": lease}, seconds)
        return _number(_result(answer).get("TTL", "0")) > 0

    def _put(self, key: str, text: str, lease: str, seconds: float, only_for: str | None) -> bool:
        """Writes a key; with ``only_for`` only where there is none yet or one of that invocation."""
        put = {"key": _b64(key), "value": _b64(text), "lease": lease}
        if only_for is None:
            self._call("kv/put", put, seconds)
            return True
        absent = {"key": _b64(key), "target": "VERSION", "result": "EQUAL", "version": "0"}
        body = {
            "compare": [absent],
            "success": [{"requestPut": put}],
            "failure": [{"requestRange": {"key": _b64(key)}}],
        }
        answer = self._call("kv/txn", body, seconds)
        if answer.get("succeeded"):
            return True
        there = [kv for found in _ranges(answer) for kv in _kvs(found)]
        if not there or _gen_of(there[0]) != only_for:
            return False
        same = {"key": _b64(key), "target": "MOD", "result": "EQUAL", "modRevision": str(there[0].get("mod_revision"))}
        answer = self._call("kv/txn", {"compare": [same], "success": [{"requestPut": put}]}, seconds)
        return bool(answer.get("succeeded"))

    def _call(self, path: str, body: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        for attempt in range(2):
            if self.source.user and not self._token:
                self._authenticate(seconds)
            headers = {"Authorization": self._token} if self._token else {}
            answer = self._http.call(
                "POST", f"/v3/{path}", jsontext.dumps(body).encode(), seconds=seconds, headers=headers, trouble=_trouble
            )
            if answer.status == 200:
                table = answer.json()
                if not isinstance(table, dict):
                    raise Away("the answer is not a JSON object")
                return table
            words = _error(answer)
            if _NO_LEASE in words:
                raise _LeaseGone(words)
            if "auth token" in words and self.source.user and not attempt:
                self._token = ""  # it has a life of its own (--auth-token-ttl), shorter than ours
                continue
            if "space exceeded" in words:
                raise Away(words)  # until it has been compacted and the alarm disarmed
            raise Refused(f"etcd: {words}")
        raise Refused("etcd refuses the token that it has just issued")

    def _authenticate(self, seconds: float) -> None:
        body = jsontext.dumps({"name": self.source.user, "password": password(self.source)}).encode()
        answer = self._http.call("POST", "/v3/auth/authenticate", body, seconds=seconds, trouble=_trouble)
        if answer.status != 200:
            raise Refused(f"etcd does not know user {self.source.user}: {_error(answer)}")
        table = answer.json()
        self._token = str(table.get("token", "")) if isinstance(table, dict) else ""


class _LeaseGone(Away):
    pass


def _trouble(answer: Answer) -> str:
    """An error that another member may not have: this one has no leader, or cannot reach it."""
    if answer.status < 500:
        return ""
    return _error(answer)


def _error(answer: Answer) -> str:
    try:
        table = answer.json()
    except Away:
        return f"status {answer.status}"
    words = table.get("message") or table.get("error") if isinstance(table, dict) else None
    return str(words)[:200] if words else f"status {answer.status}"


def _result(table: Mapping[str, Any]) -> dict[str, Any]:
    """A stream's answer is wrapped once more."""
    found = table.get("result", {})
    return found if isinstance(found, dict) else {}


def _b64(text: str) -> str:
    return b2a_base64(text.encode(), newline=False).decode()


def _kvs(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The keys of an answer; none where it has none. Raises Away for what etcd does not send."""
    return _objects(answer.get("kvs", []))


def _ranges(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results of a transaction's reads. Raises Away."""
    return _objects([one.get("response_range", {}) for one in _objects(answer.get("responses", []))])


def _objects(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise Away("the answer does not look like etcd's")
    return value


def _number(value: Any) -> int:
    """A 64-bit number, which etcd's gateway writes as a string. Raises Away."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise Away(f"the answer has {str(value)[:40]!r} in place of a number") from None


def _plain(text: Any) -> str:
    """A key or value as text. What is not UTF-8 is somebody else's, and no key of a record: it hides no other one."""
    try:
        return a2b_base64(text).decode(errors="backslashreplace")
    except (NotBase64, ValueError, TypeError):
        raise Away("the answer holds what is not base64") from None


def _range(prefix: str) -> dict[str, Any]:
    """The range of all keys with a prefix: up to the prefix with its last byte one higher."""
    return {**_keys_of(prefix), "limit": str(MOST)}


def _keys_of(prefix: str) -> dict[str, str]:
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    return {"key": _b64(prefix), "range_end": _b64(end)}


def _new_in(service: str, since: str) -> dict[str, Any]:
    return {"requestRange": {**_range(f"{PREFIX}{service}/"), "min_mod_revision": since}}


def _revision(answer: Mapping[str, Any]) -> int:
    try:
        return int(answer["header"]["revision"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise Away("the answer has no revision: is this etcd?") from None


def _read(answer: Mapping[str, Any], service: str, wrong: list[str] | None) -> dict[str, Record | None]:
    """Keys and records of an answer; None for what is no record of this service."""
    found: dict[str, Record | None] = {}
    for kv in _kvs(answer):
        key = _plain(kv.get("key", ""))
        found[key] = None
        try:
            record = parse(a2b_base64(kv.get("value", "")))
            if record.key != key or record.service != service:
                raise Wrong(f"it says that it is {record.id} of {record.service}")
            found[key] = record
        except (Wrong, NotBase64, ValueError, TypeError) as error:
            if wrong is not None:
                wrong.append(f"{key}: {error}")
    return found


def _present(records: Mapping[str, Record | None]) -> list[Record]:
    return [record for record in records.values() if record is not None]


def _gen_of(kv: Mapping[str, Any]) -> str:
    try:
        return parse(a2b_base64(kv.get("value", ""))).gen
    except (Wrong, NotBase64, ValueError, TypeError):
        return ""
