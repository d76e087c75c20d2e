"""Consul through the HTTP API of the host's agent: records are services of its catalog, which others can read as well.

A host has one TTL check, of a service of its own, that the follower passes; the services of its pods have an alias
check of that one (agent/checks, Consul 1.2.2), so that renewing costs one call however many they are. A second check
says whether a pod is ready. What others have registered is read too: an ambassador finds a database that is no pod.
"""

from __future__ import annotations

import os
import time

from podrun import jsontext
from podrun.hook import Wrong
from podrun_hooks.registry.bell import Bell, Request
from podrun_hooks.registry.http import Away, Client, Refused, TooLarge, password
from podrun_hooks.registry.oversized import Oversized
from podrun_hooks.registry.record import MOST, PREFIX, Record, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import Any

    from podrun_hooks.registry.http import Answer
    from podrun_hooks.registry.source import Source
    from podrun_hooks.registry.wishes import Leases

#: Fields of a record that are metadata in Consul, whose keys are of [A-Za-z0-9_-]; a pod's own have the second prefix.
_FIELD, _OWN = "podrun-", "podrun_meta-"
_FIELDS = ("id", "host", "proto", "gen", "boot_id", "unit")
_WAITING = "podrun/v1/wait/"
#: How long a service may be critical before the agent forgets it: as long as nobody renews the host's check.
_FORGOTTEN = "1h"
#: So many services have a blocking query, which takes a connection each: an agent allows a client 200 of them
#: (limits.http_max_conns_per_client). The others are polled.
_BELLS = 32


class Consul:
    """One agent. Methods raise Away or Refused; ``seconds`` bounds each of them."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._http = Client(source)
        self.bell = Bell()
        self._known: dict[str, list[Record]] = {}
        #: What Consul said that each service's records were at (X-Consul-Index) when they were read last.
        self._index: dict[str, str] = {}
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
        """Registers a record as a service, alive as long as the host's check passes within ``ttl`` seconds."""
        del leases, only_new  # a service belongs to the agent of its host: nobody else can have it
        self._renew(ttl, seconds)
        self._register(record, ttl, seconds)
        return True

    def withdraw(self, service: str, identity: str, gen: str, *, seconds: float) -> bool:
        """Deregisters a record, only that of this invocation; True when it was there."""
        name = _service_id(service, identity)
        answer = self._call("GET", f"/v1/agent/service/{_in_path(name)}", None, seconds, missing=True)
        if answer is None or _meta(answer.json()).get(f"{_FIELD}gen") != gen:
            return False
        self._call("PUT", f"/v1/agent/service/deregister/{_in_path(name)}", None, seconds)
        return True

    def records(self, service: str, *, seconds: float, wrong: list[str] | None = None) -> list[Record]:
        """The records of a service, by id; into ``wrong`` goes what is no record, and why."""
        answer = self._call("GET", f"/v1/health/service/{_in_path(service)}", None, seconds)
        assert answer is not None
        self._index[service] = answer.headers.get("x-consul-index", "")
        table = answer.json()
        if not isinstance(table, list):
            raise Away("the answer is not a JSON array: is this Consul?")
        newest: dict[str, tuple[int, Record]] = {}
        for entry in table[:MOST]:
            try:
                record, created = _record(entry, service)
            except (Wrong, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                if wrong is not None:
                    wrong.append(f"{service}: {error}")
                continue
            # Two agents have it: a singleton whose old host has not timed out yet.
            if record.id not in newest or newest[record.id][0] < created:
                newest[record.id] = (created, record)
        return sorted((record for _, record in newest.values()), key=lambda record: record.id)

    def services(self, *, seconds: float) -> list[str]:
        """The services of the catalog; the hosts' own ones are left out."""
        table = self._table("/v1/catalog/services", seconds)
        return sorted(name for name in table if not name.startswith("podrun-host") and name != "consul")

    def remove(self, service: str, identity: str, *, seconds: float) -> bool:
        """Deregisters a record of this agent; True when it was there."""
        name = _service_id(service, identity)
        if self._call("GET", f"/v1/agent/service/{_in_path(name)}", None, seconds, missing=True) is None:
            return False
        self._call("PUT", f"/v1/agent/service/deregister/{_in_path(name)}", None, seconds)
        return True

    # --- waiting -----------------------------------------------------------------------------------------------

    def wait_begins(self, identity: str, text: str, ttl: float, leases: Leases, *, seconds: float) -> None:
        """Writes a note of what a pod waits for into Consul's key/value store."""
        del ttl, leases
        self._call("PUT", f"/v1/kv/{_WAITING}{identity}", text, seconds)

    def wait_ends(self, identity: str, *, seconds: float) -> None:
        """Removes the note."""
        self._call("DELETE", f"/v1/kv/{_WAITING}{identity}", None, seconds)

    def waiting(self, *, seconds: float) -> list[str]:
        """The notes of all waiting pods."""
        from binascii import a2b_base64

        answer = self._call("GET", f"/v1/kv/{_WAITING}?recurse", None, seconds, missing=True)
        try:
            values = [kv["Value"] for kv in answer.json()] if answer else []
            # An empty value is null, and somebody else's.
            return [a2b_base64(value).decode(errors="replace") for value in values if value is not None]
        except (KeyError, TypeError, ValueError):
            raise Away("the answer does not look like Consul's") from None

    # --- following ---------------------------------------------------------------------------------------------

    def poll(self, services: Collection[str], *, seconds: float) -> dict[str, list[Record]]:
        """The records of those services that have changed since the last poll; all of one that is new here."""
        self._known = {service: records for service, records in self._known.items() if service in services}
        changed = {}
        for service in sorted(services):
            if service in self.oversized:
                continue
            try:
                records = self.records(service, seconds=seconds)
            except TooLarge as error:
                self.oversized.add(service, error)
                continue
            self.oversized.discard(service)
            if self._known.get(service) != records:
                changed[service] = self._known[service] = records
        return changed

    def listen(self, now: float) -> None:
        """Makes the bell ring for changes of the services of the last poll: a blocking query for each."""
        token = password(self.source)
        headers = {"X-Consul-Token": token} if token else {}
        requests = []
        for service in sorted(self._known)[:_BELLS]:
            index = self._index.get(service, "")
            if index.isdigit() and index != "0":
                path = f"/v1/health/service/{service}?index={index}&wait=60s"
                requests.append(Request(path, "GET", path, b"", headers, once=True))
        self.bell.listen(self._http, requests, now)
        self.bell.listens &= len(requests) == len(self._known)

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
        """Passes the host's check; with ``repair`` it registers what is missing and deregisters what is left over.

        ``orphaned`` is asked before a key is deleted: it may have been registered since the caller looked.
        Returns what was done beside renewing, for the log.
        """
        del leases
        anew = self._renew(ttl, seconds)
        if not (repair or anew):
            return []
        done = ["registered the host's check"] if anew else []
        expected = {_service_id(record.service, record.id): record for record in wanted.values()}
        there = {}
        for name, entry in self._table("/v1/agent/services", seconds).items():
            meta = _meta(entry)
            if meta.get(f"{_FIELD}host") == os.uname().nodename and meta.get(f"{_FIELD}ttl") == f"{ttl:g}":
                there[name] = meta
        for name, record in expected.items():
            if there.get(name, {}).get(f"{_FIELD}gen") != record.gen:
                self._register(record, ttl, seconds)
                done.append(f"registered {name}")
        for name in sorted(set(there) - set(expected)):
            service, _, identity = name.removeprefix("podrun:").partition(":")
            if not orphaned(f"{PREFIX}{service}/{identity}"):
                continue
            self._call("PUT", f"/v1/agent/service/deregister/{_in_path(name)}", None, seconds)
            done.append(f"removed {name}, which no pod of this host has")
        return done

    # --- messages ----------------------------------------------------------------------------------------------

    def _renew(self, ttl: float, seconds: float) -> bool:
        """Passes the host's check, which is registered when it is not there; True when it was not."""
        name = _host_id(ttl)
        if self._call("PUT", f"/v1/agent/check/pass/service:{name}", None, seconds, missing=True) is not None:
            return False
        check = {"TTL": f"{ttl:g}s", "Status": "passing"}
        self._call("PUT", "/v1/agent/service/register", {"ID": name, "Name": "podrun-host", "Check": check}, seconds)
        return True

    def _register(self, record: Record, ttl: float, seconds: float) -> None:
        meta = {f"{_FIELD}{key}": str(getattr(record, key)) for key in _FIELDS}
        meta |= {f"{_FIELD}v": "1", f"{_FIELD}ttl": f"{ttl:g}"}
        meta |= {f"{_OWN}{key}": value for key, value in record.meta.items() if key != "check"}
        name = _service_id(record.service, record.id)
        alias = {"CheckID": f"{name}:host", "Name": "the host is alive", "AliasService": _host_id(ttl)}
        ready = {"CheckID": f"{name}:ready", "Name": "ready", "TTL": "87600h"}
        checks = [
            {**alias, "DeregisterCriticalServiceAfter": _FORGOTTEN},
            {**ready, "Status": "passing" if record.ready else "critical"},
            *_checks(record, name),
        ]
        body = {"ID": name, "Name": record.service, "Address": record.addr, "Port": record.port, "Tags": ["podrun"]}
        path = "/v1/agent/service/register?replace-existing-checks=true"
        self._call("PUT", path, {**body, "Meta": meta, "Checks": checks}, seconds)
        # A check that is there keeps its status, whatever a new registration of it says.
        status = {"Status": "passing" if record.ready else "critical"}
        self._call("PUT", f"/v1/agent/check/update/{name}:ready", status, seconds)

    def _table(self, path: str, seconds: float) -> dict[str, Any]:
        answer = self._call("GET", path, None, seconds)
        table = answer.json() if answer else None
        if not isinstance(table, dict):
            raise Away("the answer is not a JSON object: is this Consul?")
        return table

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | str | None, seconds: float, *, missing: bool = False
    ) -> Answer | None:
        """A call of the API; None for what is not there, with ``missing``."""
        token = password(self.source)
        data = body if isinstance(body, str) else jsontext.dumps(body) if body is not None else ""
        headers = {"X-Consul-Token": token} if token else {}
        answer = self._http.call(method, path, data.encode(), seconds=seconds, headers=headers, trouble=_trouble)
        if answer.status == 200:
            return answer
        words = answer.body.decode(errors="replace").strip()[:200] or f"status {answer.status}"
        if missing and (answer.status == 404 or "does not have associated TTL" in words or "Unknown check" in words):
            return None
        raise Refused(f"Consul: {words}")


def _trouble(answer: Answer) -> str:
    # An unknown check is a 500 in 1.8 and a 404 since 1.10.
    if answer.status < 500 or b"CheckID" in answer.body or b"Unknown check" in answer.body:
        return ""
    return answer.body.decode(errors="replace").strip()[:200] or f"status {answer.status}"


def _host_id(ttl: float) -> str:
    return f"podrun-host-{ttl:g}s"


def _service_id(service: str, identity: str) -> str:
    """No slash, no "?", no "%": it stands in paths."""
    return f"podrun:{service}:{identity}"


def _in_path(name: str) -> str:
    """A name in a path (RFC 3986, 2.1): others register some that podrun would not."""
    plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~:@+"
    return "".join(chr(byte) if chr(byte) in plain else f"%{byte:02X}" for byte in name.encode(errors="replace"))


def _checks(record: Record, name: str) -> list[dict[str, Any]]:
    """What the agent itself is to try, as ``check`` of the register step says: "tcp" or "http:/path"."""
    kind, _, path = record.meta.get("check", "").partition(":")
    place = f"[{record.addr}]:{record.port}" if ":" in record.addr else f"{record.addr}:{record.port}"
    usual = {"CheckID": f"{name}:{kind}", "Name": kind, "Interval": "5s", "Timeout": "2s", "Status": "passing"}
    if kind == "tcp":
        return [{**usual, "TCP": place}]
    return [{**usual, "HTTP": f"http://{place}{path}"}] if kind == "http" else []


def _meta(entry: Any) -> dict[str, str]:
    found = entry.get("Meta") if isinstance(entry, dict) else None
    return found if isinstance(found, dict) else {}


def _record(entry: Mapping[str, Any], service: str) -> tuple[Record, int]:
    """A record of /v1/health/service, whoever registered it, and when that was. Raises Wrong, KeyError, TypeError."""
    about, meta = entry["Service"], _meta(entry["Service"])
    fields: dict[str, Any] = {key: meta.get(f"{_FIELD}{key}", "") for key in _FIELDS}
    if not meta.get(f"{_FIELD}v"):
        plain = "".join(letter if letter.isalnum() or letter in "-_.@+" else "-" for letter in about["ID"])
        fields |= {"id": plain.lstrip("."), "host": entry["Node"]["Node"], "proto": "tcp"}
    own = {key.removeprefix(_OWN): value for key, value in meta.items() if key.startswith(_OWN)}
    ready = all(check["Status"] in ("passing", "warning") for check in entry["Checks"])
    table = {
        **fields, "v": 1, "service": service, "addr": about["Address"] or entry["Node"]["Address"],
        "port": about["Port"], "ready": ready, "meta": own,
    }  # fmt: skip
    return parse(jsontext.dumps(table)), int(about.get("CreateIndex", 0))
