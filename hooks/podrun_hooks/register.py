"""Registration: a service's record in a registry, from the pod's start to its drain.

The step says what it wants in a file (registry/wishes.py), then does it. With the file registry that is all; one that
has a server gets one call, and the follower keeps the record alive, or writes it later.
"""

from __future__ import annotations

import os
import time

from podrun.errors import NOT_ALLOWED, UNAVAILABLE, WRONG_FILE, Failure
from podrun.hook import BOOLEAN, DURATION, PORT, TEXT, Wrong, checked, choice, option, table_of
from podrun.hook_extras import Finding
from podrun.identity import Identity
from podrun.record import NamedTuple
from podrun.unit_needs import Span, UnitNeeds
from podrun_hooks.registry import advertise, file, wishes
from podrun_hooks.registry import source as sources
from podrun_hooks.registry.record import Record, service_name
from podrun_hooks.registry.source import REGISTRY, Source
from podrun_hooks.registry.wishes import Registration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence, Set
    from typing import Any

    from podrun.hook import Facts, Problem, Step

takes: Sequence[str] = ("addresses", "netns", "published", "ready", "process")
gives: Sequence[str] = ("record", "registration")
resident = False
default_name = ""
unit_needs = UnitNeeds(stop=(Span(("drain",), 0.0),), follows=(("registry",),))

#: Seconds that all of a step's calls to a registry with a server may take together.
PATIENCE = 2.0


def _ttl(value: float) -> float:
    if not 2 <= value <= 86400:
        raise Wrong("expected a time from 2s to a day")
    return value


def _check(text: str) -> str:
    if text not in ("", "tcp") and not (text.startswith("http:/") and text.isprintable() and " " not in text):
        raise Wrong(f"expected 'tcp' or 'http:/path', not {text!r}")
    return text


def _meta(table: dict[str, str]) -> dict[str, str]:
    for key, value in table.items():
        if not key.replace("-", "a").replace("_", "a").isalnum() or not key.isascii() or len(key) > 64:
            raise Wrong(f"{key!r}: expected letters, digits, - and _", (key,))
        if len(value) > 512 or not value.isprintable():
            raise Wrong(f"{key}: expected a line of at most 512 characters", (key,))
    return table


class Options(NamedTuple):
    """A service's record."""

    service: str = option(checked(TEXT, service_name), "the name that others look the service up by")
    port: int = option(PORT, "the port that the pod listens on")
    proto: str = option(choice("tcp", "udp", "sctp"), "its transport", "tcp")
    registry: Source = option(REGISTRY, "where to register; default: that of podrun.toml, else file:", Source())
    ttl: float = option(
        checked(DURATION, _ttl), "with a server: how long the record outlives a host that no longer renews it", 15.0
    )
    advertise: str = option(
        checked(TEXT, advertise.wanted),
        "the address in the record: published, pod or an IP address; default: published, with file: else the pod's",
        "",
    )
    singleton: bool = option(
        BOOLEAN, "one instance on all hosts together: a successor's record replaces the one before", False
    )
    when_away: str = option(
        choice("defer", "fail"), "when the registry does not answer: start, and register later; or fail", "defer"
    )
    drain: float = option(DURATION, "on stop: how long to wait after deregistering, before the container ends", 0.0)
    check: str = option(checked(TEXT, _check), "Consul: a check that its agent makes as well, tcp or http:/path", "")
    meta: dict[str, str] = option(
        checked(table_of(TEXT), _meta), "what readers should know; weight (1 to 100) is its share of connections", {}
    )


def up(step: Step, facts: Facts) -> Facts:
    """Writes the record: ready when a container before this step is, else the container says so later."""
    source = sources.resolved(step.options.registry, step.pod.run)
    record = _record(step, facts, source)
    if not step.pod.beside:
        _register(step, source, record)
    where = (
        f"{source.url}{record.key}" if source.has_server else file.path_of(source.directory, record.service, record.id)
    )
    registration = {"source": sources.to_json(source), "id": record.id, "record": record._asdict()}
    return {"record": where, "registration": registration}


def _register(step: Step, source: Source, record: Record) -> None:
    wish = Registration(step.pod.name, step.name, source, step.options.ttl, record)
    wishes.write(step.pod.run, wish)
    if source.has_server:
        _announce(step, wish)
    else:
        publish(step.pod.run, source, record)


def down(step: Step, own: Facts) -> None:
    """Removes the record and lets clients drain; nothing to drain when it is gone already.

    Only a record of this generation is removed: a successor's may have the same name. A registry with a server is asked
    once, for 2 s at most: what it does not hear of in that time ends with the lease.
    """
    run = step.pod.run
    wish = wishes.read(run, step.pod.name, step.name)
    theirs = isinstance(wish, Registration) and wish.record.gen != step.pod.incarnation
    if theirs:
        wish = None  # a successor's
    in_file = isinstance(wish, Registration) and not wish.source.has_server
    if not (theirs or in_file):
        # First of all, so that the follower does not write the record again.
        wishes.remove(run, step.pod.name, step.name)
    if isinstance(wish, Registration):
        source, identity = wish.source, wish.record.id
    elif own.get("registration"):
        source, identity = sources.from_json(own["registration"]["source"]), own["registration"]["id"]
    elif str(own.get("record", "")).startswith("/"):
        # What podrun 0.1.0 registered: the path of the record in a file registry.
        registry, _, name = own["record"].rsplit("/", 2)
        source, identity = Source("file", registry), name.removesuffix(".json")
    else:
        return
    was_there = withdraw(step, source, identity)
    if in_file:
        # Last: a down that was killed before finds the record by it when there are no facts.
        wishes.remove(run, step.pod.name, step.name)
    if was_there and own and step.options.drain:
        step.status(f"draining {step.options.service} for {step.options.drain:g} s")
        time.sleep(step.options.drain)


def check(step: Step) -> list[Problem]:
    """A registry that is there, and is root's."""
    from podrun.hook import Problem

    problems = sources.problems(step.options.registry, step.pod.run)
    if problems or not step.options.check:
        return problems
    if sources.resolved(step.options.registry, step.pod.run).kind != "consul":
        problems.append(Problem("check is what a Consul agent does", WRONG_FILE, key="check"))
    return problems


def check_in_chain(step: Step, before: Sequence[Step]) -> list[Problem]:
    """A port in a record that other hosts read has to be published, or reachable by ``advertise``."""
    from podrun.hook import Problem

    options: Options = step.options
    try:
        source = sources.resolved(options.registry, step.pod.run)
    except Failure:
        return []
    networks = [other.options for other in before if other.hook == "network"]
    modes = {one.mode.partition(":")[0] for one in networks}
    if not source.has_server or options.advertise not in ("", "published") or "host" in modes or not networks:
        return []
    published = [port for one in networks for port in one.publish]
    for port in published:
        if not port.ip.startswith("127.") and port.port <= options.port < port.port + port.length:
            return []
    what = f"port {options.port} is published on no address that another host could call"
    hint = f"publish = ['0.0.0.0:{options.port}:{options.port}'] in the network step, or advertise = 'pod'"
    return [Problem(what, WRONG_FILE, hint, key="port")]


def exclusive(step: Step) -> str:
    """Nothing: the record belongs to the generation that wrote it last."""
    return ""


def take_over(step: Step, own: Facts, before: Step, before_own: Facts) -> None:
    """Writes this generation's record in the place of the other's: readers see the one or the other."""
    registration = own["registration"]
    _register(step, sources.from_json(registration["source"]), Record(**registration["record"]))


def settle(step: Step, own: Facts, seconds: float) -> None:
    """Waits for as long as readers may need to notice that the record has changed."""
    if step.options.drain:
        step.status(f"draining {step.options.service} for {step.options.drain:g} s")
        time.sleep(step.options.drain)


def services_of(options: Mapping[str, Any]) -> list[str]:
    """The service that a step registers: other pods may be waiting for it."""
    return [str(options["service"])] if "service" in options else []


def explain(step: Step) -> list[str]:
    """The record as a shell would write it."""
    options: Options = step.options
    source = sources.resolved(options.registry, step.pod.run)
    record = _record_at(step, "192.0.2.1", options.port, ready=True)
    text = record.text.replace("192.0.2.1", "ADDRESS")
    if source.kind == "etcd":
        ends = ",".join(f"{host}:{port}" for host, port in source.endpoints)
        lease = f"LEASE=$(etcdctl --endpoints={ends} lease grant {options.ttl:g} | cut -d' ' -f2)"
        return [lease, f"etcdctl --endpoints={ends} put --lease=$LEASE {record.key} '{text}'"]
    if source.kind == "consul":
        return [f"consul services register -name={options.service} -address=ADDRESS -port={options.port}"]
    path = file.path_of(source.directory, options.service, record.id)
    return [f"mkdir -p {os.path.dirname(path)}", f"echo '{text}' >{path}   # by rename(2)"]


def collect(root: str, run: str, pods: Set[str], only_look: bool) -> list[str]:
    """Removes the wishes of pods that are gone, and their records in the file registry."""
    found = []
    directory = f"{run}/registry"
    for wish in wishes.everything(run):
        if wish.pod not in pods:
            found.append(f"wish of {wish.pod}")
            if not only_look:
                wishes.remove(run, wish.pod, wish.step)
    for path in wishes.unwanted(run):
        found.append(path)
        if not only_look:
            os.unlink(path)
    for service in file.services(directory):
        for record in file.records(directory, service):
            if record.host == os.uname().nodename and record.unit not in pods:
                found.append(f"record {record.id} of {service}")
                if not only_look:
                    with wishes.Locked(run, directory):
                        file.delete(directory, service, record.id, record.gen)
                        _lead(run, Source("file", directory), service)
    return found


def diagnose(root: str, run: str) -> Iterator[Finding]:
    """The registries that pods of this host use, and the default one: whether they answer."""
    from podrun_hooks.registry import ask

    used = {wish.source for wish in wishes.everything(run)}
    try:
        used.add(sources.resolved(Source(), run))
    except Failure as failure:
        yield Finding("fail", failure.what, failure.hint, failure.code)
    for source in sorted(used):
        try:
            services = ask.services(source)
        except Failure as failure:
            yield Finding("warn", f"registry {failure.what}", "pods start without it, and are registered later")
            continue
        if source.has_server or services:
            yield Finding("ok", f"registry {source.url}: {len(services)} services")
    if any(wish.source.has_server for wish in wishes.everything(run)):
        from podrun_hooks.follow import begin

        if not begin.running(run):
            hint = f"systemctl start {begin.unit_of(run)}"
            yield Finding("warn", "no follower runs: records end with their leases", hint)


# --- what is done to a registry ------------------------------------------------------------------------------------


def publish(run: str, source: Source, record: Record) -> None:
    """Writes a record into a file registry, and leads this host's ambassadors to it."""
    with wishes.Locked(run, source.directory):
        file.put(source.directory, record)
        _lead(run, source, record.service)


def withdraw(step: Step, source: Source, identity: str) -> bool:
    """Removes a record of this generation from its registry; True when it was there."""
    options: Options = step.options
    gen = step.pod.incarnation
    if not source.has_server:
        if not os.path.isdir(source.directory):
            return False
        with wishes.Locked(step.pod.run, source.directory):
            removed = file.delete(source.directory, options.service, identity, gen)
            _lead(step.pod.run, source, options.service)
        return removed
    from podrun_hooks.registry import connect
    from podrun_hooks.registry.http import Away, Refused

    step.status(f"deregistering {options.service}")
    client = connect(source)
    client.limit(PATIENCE)
    try:
        return client.withdraw(options.service, identity, gen, seconds=PATIENCE)
    except (Away, Refused) as error:
        step.status(f"deregistering {options.service} is left to the lease, {options.ttl:g} s: {error}")
        return False
    finally:
        client.close()


def _lead(run: str, source: Source, service: str) -> None:
    """Switches ambassadors to a record that is written: one that cannot be switched is no reason to fail."""
    if wishes.ambassadors(run, source, service):
        from podrun_hooks.ambassador import reach

        try:
            reach.refresh(run, source, service)
        except Failure as failure:
            os.write(2, f"podrun: {service}: {failure}\n".encode(errors="replace"))


def _announce(step: Step, wish: Registration) -> None:
    """Writes the record into a registry with a server, or leaves it to the follower. Raises Failure."""
    from podrun_hooks.follow import begin
    from podrun_hooks.registry import connect
    from podrun_hooks.registry.http import Away, Refused

    options: Options = step.options
    begin.ensure(step)
    step.status(f"registering {options.service}")
    client = connect(wish.source)
    client.limit(PATIENCE)
    try:
        client.announce(wish.record, wish.ttl, wishes.Leases(step.pod.run), seconds=PATIENCE)
    except Refused as error:
        raise Failure(f"{wish.source.url}: {error}", code=NOT_ALLOWED, key="registry") from None
    except Away as error:
        if options.when_away == "fail":
            hint = "when_away = 'defer' would start the pod and register later"
            raise Failure(f"the registry is away: {error}", code=UNAVAILABLE, hint=hint, key="registry") from None
        wishes.write(step.pod.run, wish._replace(deferred=True))
        step.status(f"the registry is away, {options.service} is registered later: {error}")
    finally:
        client.close()


# --- the record ----------------------------------------------------------------------------------------------------


def _record(step: Step, facts: Facts, source: Source) -> Record:
    options: Options = step.options
    addr, port = advertise.place(options.advertise, options.port, options.proto, facts, source)
    return _record_at(step, addr, port, ready=bool(facts.get("ready")))


def _record_at(step: Step, addr: str, port: int, *, ready: bool) -> Record:
    options: Options = step.options
    host = os.uname().nodename
    # A singleton's record is the same wherever it runs: with the host in it there would be two after a failover.
    identity = Identity(step.pod.name, step.name)
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as text:
        boot_id = text.read().strip()
    meta = {**options.meta, "check": options.check} if options.check else options.meta
    return Record(
        id=identity.text if options.singleton else identity.record(host),
        service=options.service,
        host=host,
        addr=addr,
        port=port,
        proto=options.proto,
        ready=ready,
        gen=step.pod.incarnation,
        boot_id=boot_id,
        unit=step.pod.name,
        meta=meta,
    )
