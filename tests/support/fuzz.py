"""Mutated input of every kind that podrun reads from others: what comes out is a value or one of the documented errors.

Each target has samples (a corpus) and a function. A round takes a sample, or two, and changes it; which, and how, follows
from the seed and the round's number alone: ``python tests/support/fuzz.py TARGET SEED ROUND`` does one round again.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from podrun import facts, jsontext
from podrun.engine import hook_loader, journal, state
from podrun.engine.processes import start_time
from podrun.errors import Failure
from podrun.options import Wrong
from podrun.podfile import loader
from podrun_hooks.container import processes
from podrun_hooks.container.probes import ready
from podrun_hooks.image import manifest
from podrun_hooks.image.layer import stream, tar
from podrun_hooks.image.registry import client
from podrun_hooks.network.netlink import conntrack, nfnetlink, rtnetlink, sockets
from podrun_hooks.registry import etcd, http, record
from podrun_hooks.registry.consul import Consul
from podrun_hooks.registry.http import Answer, Away, Refused
from podrun_hooks.registry.source import Source
from support import image_builder as build
from support import image_fuzz
from support.fuzz_shapes import reshaped

_WORDS = [
    *image_fuzz.WORDS, b'"', b"'", b"{", b"}", b"[", b"]", b":", b",", b"null", b"true", b"-0", b"1e999", b"NaN", b"\\u0000",
    b"\\ud800", b"\xf0\x9f\x98\x80", b"\xc0\x80", b"\r\n", b"\x7f", b"\x1b[2J", b"${HOME}", b"${", b"%i", b"9" * 5000,
    b"[" * 2000, b"{\"a\":" * 500, b"hook", b"READY=1", b"MAINPID=1", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x04\0", b"\0\0",
]  # fmt: skip


def mutated(sample: bytes, other: bytes, chance: random.Random) -> bytes:
    """The sample with a few bytes, words or stretches of another one changed."""
    data = bytearray(sample)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(data) + 1)
        how = chance.randrange(9)
        if how == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif how == 1 and at < len(data):
            data[at] = chance.choice((0, 1, 0x20, 0x30, 0x7F, 0x80, 0xFE, 0xFF, chance.randrange(256)))
        elif how == 2:
            word = chance.choice(_WORDS)
            data[at : at + len(word)] = word
        elif how == 3:
            data[at:at] = chance.choice(_WORDS)
        elif how == 4:
            del data[at : at + chance.choice((1, 2, 4, 16, 100))]
        elif how == 5:
            start = chance.randrange(len(data) + 1)
            size = chance.choice((1, 4, 12, 64, 512))
            data[at : at + chance.choice((0, size))] = data[start : start + size]
        elif how == 6:
            start = chance.randrange(len(other) + 1)
            data[at:at] = other[start : start + chance.choice((4, 40, 400))]
        elif how == 7:
            del data[at:]
        else:
            start = data.find(b'"', at) + 1
            end = data.find(b'"', start)
            if 0 < start < end:  # a whole string of JSON or TOML becomes another value
                data[start - 1 : end + 1] = chance.choice(
                    (b"0", b"-1", b"null", b"[]", b"{}", b'""', b"true", b"1.5", b'["a"]')
                )
    return bytes(data)


class Target(NamedTuple):
    """Something that reads what others write."""

    name: str
    samples: list[bytes]
    #: Reads; what it may raise is in ``errors``.
    read: Callable[[bytes], object]
    errors: tuple[type[BaseException], ...]


# --- images --------------------------------------------------------------------------------------------------------


def _layer(content: bytes) -> None:
    chunks = iter([content[at : at + 1000] for at in range(0, len(content), 1000)])
    reader = stream.Reader(stream.decompressed(chunks, "layer"), "layer")
    for entry in tar.entries(reader):
        assert entry.size >= 0
    reader.drain()


_IMAGE = build.image(build.tar(image_fuzz.PARTS[2]), Cmd=["/a"], Env=["A=1"], Labels={"a": "b"}, User="1:1")
_DESCRIBED = manifest.Descriptor(manifest.OCI_MANIFEST, build.digest(_IMAGE.manifest), len(_IMAGE.manifest))


def _index(content: bytes) -> None:
    found = manifest.document(content, "index")
    manifest.choose(found, manifest.platform(""), "index")


def _challenge(content: bytes) -> None:
    for name, values in client._challenges(content.decode("latin-1")):
        assert name == name.lower() and isinstance(values, dict)


# --- the registry of services --------------------------------------------------------------------------------------

_SOURCE = Source("etcd", endpoints=(("127.0.0.1", 2379),))


class _Told:
    """In the place of a connection: gives the same answer to every question."""

    until = float("inf")

    def __init__(self, body: bytes) -> None:
        self.answer = Answer(200, {}, body)

    def call(self, *_: object, **__: object) -> Answer:
        return self.answer

    def close(self) -> None:
        pass


def _asked(found: Any, content: bytes) -> None:
    found._http = _Told(content)
    questions: list[Callable[[], object]] = [
        lambda: found.records("db", seconds=1), lambda: found.services(seconds=1), lambda: found.waiting(seconds=1),
        lambda: found.poll(["db"], seconds=1), lambda: found.withdraw("db", "a.b", "g", seconds=1),
    ]  # fmt: skip
    for question in questions:
        try:
            question()
        except (Away, Refused):
            pass


def _http(content: bytes) -> None:
    here, there = socket.socketpair()
    try:
        here.setblocking(False)
        there.setblocking(False)
        try:
            there.send(content)
        except BlockingIOError:
            return
        there.shutdown(socket.SHUT_WR)
        asking = http.Client(_SOURCE)
        asking._connection = here
        answer = asking._exchange(b"GET / HTTP/1.1\r\n\r\n", time.monotonic() + 5)
        answer.json()
    finally:
        here.close()
        there.close()


def _etcd_answers() -> list[bytes]:
    text = record.Record("a.b", "db", "h", "192.0.2.1", 5432, "tcp", True, "g", "", "", {"weight": "3"}).text
    kv = {"key": etcd._b64("podrun/v1/db/a.b"), "value": etcd._b64(text), "mod_revision": "7", "lease": "12"}
    header = {"cluster_id": "1", "revision": "9"}
    answers = [
        {"header": header, "kvs": [kv, kv], "count": "2"}, {"header": header},
        {"header": header, "succeeded": True, "responses": [{"response_range": {"kvs": [kv], "count": "1"}}]},
        {"header": header, "deleted": "1"}, {"result": {"header": header, "TTL": "9", "ID": "12"}},
        {"error": "etcdserver: no leader", "code": 14},
    ]  # fmt: skip
    return [json.dumps(answer).encode() for answer in answers]


def _consul_answers() -> list[bytes]:
    meta = {"podrun-v": "1", "podrun-id": "a.b", "podrun-gen": "g", "weight": "3"}
    service = {"ID": "a.b", "Service": "db", "Address": "192.0.2.1", "Port": 5432, "Meta": meta, "CreateIndex": 7}
    node = {"Node": "h", "Address": "192.0.2.9"}
    entry = {"Node": node, "Service": service, "Checks": [{"Status": "passing", "CheckID": "a"}]}
    answers = [[entry, entry], {"db": ["a"], "consul": []}, [{"Key": "a", "Value": "YQ=="}], service, []]
    return [json.dumps(answer).encode() for answer in answers]


# --- the kernel ----------------------------------------------------------------------------------------------------


class _Answers:
    """In the place of a netlink socket: what it is given, then an error like one without memory."""

    def __init__(self, content: bytes) -> None:
        self.parts = [content]

    def send(self, _: bytes) -> None:
        pass

    def recv(self, _: int) -> bytes:
        if not self.parts:
            raise OSError(105, "No buffer space available")
        return self.parts.pop()

    def close(self) -> None:
        pass


def _netlink(content: bytes) -> rtnetlink.Socket:
    found = rtnetlink.Socket.__new__(rtnetlink.Socket)
    found._socket = _Answers(content)  # type: ignore[assignment]
    found._sequence = 0
    return found


def _links(content: bytes) -> None:
    for question in (rtnetlink.Socket.links, rtnetlink.Socket.addresses, lambda found: found.link("eth0")):
        try:
            question(_netlink(content))
        except OSError:
            pass


def _nft(content: bytes) -> None:
    nfnetlink.elements(_netlink(content), "t", "m")
    nfnetlink.find(_netlink(content), "t", "m", b"\6")


def _conntrack(content: bytes) -> None:
    try:
        for family in (2, 10):
            nfnetlink._kept[:] = [(os.getpid(), _netlink(content))]
            list(conntrack._entries(family))
    finally:
        nfnetlink._kept.clear()


def _tcp(content: bytes) -> None:
    before = sockets.Socket
    sockets.Socket = lambda _: _netlink(content)  # type: ignore[assignment,misc]
    try:
        sockets.tcp([10])
    finally:
        sockets.Socket = before


# --- hooks, payloads, podrun's own -----------------------------------------------------------------------------------

_ITSELF = processes.Process(os.getpid(), start_time(os.getpid()))


def _notify(content: bytes) -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    told: list[str] = []
    try:
        for message in (content[:8000], b"READY=1"):
            there.send(message)
        ready.wait_for_notification(_Patient, _ITSELF, here, told.append, str)
    finally:
        here.close()
        there.close()
    for line in told:
        assert line.startswith(("STATUS=", "EXTEND_TIMEOUT_USEC=")), line
        assert "\n" not in line, line


class _Patient:
    timeout = 5.0


def _facts(content: bytes) -> None:
    try:
        value = jsontext.loads(content.decode())
    except (ValueError, RecursionError):
        return
    facts.accepted(value)


#: What the examples ask for, too: else their mutations would end at a variable that is not set.
_ENVIRON = {"HOME": "/root"} | {
    word: "/srv/1"
    for path in Path(__file__).parents[2].glob("examples/**/*.toml")
    for word in re.findall(r"\$\{(\w+)", path.read_text())
}


class _Files:
    """A directory in memory for what is read from a file."""

    def __init__(self) -> None:
        self.place = tempfile.mkdtemp(prefix="podrun-fuzz-", dir="/dev/shm")

    def pod_file(self, content: bytes) -> None:
        path = f"{self.place}/web.toml"
        Path(path).write_bytes(content)
        loader.load(path, environ=_ENVIRON, load_hook=hook_loader.load)

    def journal(self, content: bytes) -> None:
        path = f"{self.place}/pods/web/pod.journal"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(path).write_bytes(content)
        found = journal.journals(self.place, "web")
        state.state_of(self.place, "web", found)
        facts.merged([entry.facts for entry in state.entries(found)])


_JOURNAL = b"""\
{"v":1,"pod":{"name":"web","root":"/r","run":"/x","tag":"podrun-web"},"segment":"pod","order":0,"file":"/etc/podrun/web.toml","boot_id":"b","pid":1,"start":2}
{"n":0,"at":"starting","t":81234.56,"step":{"hook":"network","name":"network","options":{"publish":["80:80"]}}}
{"n":0,"at":"up","facts":{"netns":"/run/netns/podrun-web"},"ms":4.1}
{"n":1,"at":"starting","t":81236.56,"step":{"hook":"container","name":"main","options":{}}}
{"n":1,"process":{"pid":12,"start":13}}
{"at":"ready"}
{"n":0,"at":"stopping"}
{"n":0,"at":"down"}
"""
_FACTS = json.dumps(
    {
        "env": ["A=1"], "netns": "/run/netns/x", "addresses": ["10.88.0.2/16"], "hostname": "web",
        "mounts": [{"hostPath": "/a", "containerPath": "/b", "options": ["ro"]}], "devices": [{"path": "/dev/null"}],
        "annotations": {"a": "b"}, "process": {"pid": 1, "start": 2}, "rootfs": "/r", "own": 1,
    }
).encode()  # fmt: skip
_HTTP = [
    b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\nContent-Type: application/json\r\n\r\n{"a": [1]}',
    b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"a":\r\n4;x=y\r\n [1]\r\n1\r\n}\r\n0\r\n\r\n',
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
]
_CHALLENGES = [
    b'Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull"',
    b'Negotiate, Basic realm="a \\"b\\"", Bearer realm=https://a/token',
]
CORPUS = Path(__file__).parent / "corpus"


def _corpus(kind: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(CORPUS.glob(f"{kind}-*"))]


def targets() -> list[Target]:
    """All of them."""
    files = _Files()
    pods = [path.read_bytes() for path in sorted(CORPUS.parents[2].glob("examples/**/*.toml"))]
    layers = [build.tar(part) for part in image_fuzz.PARTS] + [
        gzip.compress(build.tar(*image_fuzz.PARTS[:4]), 1, mtime=0)
    ]
    index = json.dumps({"schemaVersion": 2, "manifests": [build.descriptor(_IMAGE), build.descriptor(_IMAGE)]}).encode()
    return [
        Target("layer", layers, _layer, (Failure,)),
        Target("config", [_IMAGE.config], lambda content: manifest.configuration(content, 1, "config"), (Failure,)),
        Target(
            "manifest",
            [_IMAGE.manifest],
            lambda content: manifest.manifest(content, _DESCRIBED, "manifest"),
            (Failure,),
        ),
        Target("index", [index], _index, (Failure,)),
        Target("pod file", pods, files.pod_file, (Failure,)),
        Target("challenge", _CHALLENGES, _challenge, ()),
        Target("record", [_etcd_record()], record.parse, (Wrong,)),
        Target("http", _HTTP, _http, (Away, TimeoutError, ConnectionError)),
        Target("etcd", _etcd_answers(), lambda content: _asked(etcd.Etcd(_SOURCE), content), ()),
        Target("consul", _consul_answers(), lambda content: _asked(Consul(_SOURCE), content), ()),
        Target("notify", [b"READY=1\nSTATUS=well\nMAINPID=1", b"EXTEND_TIMEOUT_USEC=1000\nSTOPPING=1"], _notify, ()),
        Target("facts", [_FACTS], _facts, (Failure,)),
        Target("journal", [_JOURNAL], files.journal, (Failure,)),
        Target("rtnetlink", _corpus("rtnetlink"), _links, ()),
        Target("nft", _corpus("nft"), _nft, (OSError,)),
        Target("conntrack", _corpus("conntrack"), _conntrack, (OSError,)),
        Target("sock_diag", _corpus("sock_diag"), _tcp, (OSError,)),
    ]


def _etcd_record() -> bytes:
    return record.Record("a.b", "db", "h", "192.0.2.1", 5432, "tcp", True, "g", "", "", {"weight": "3"}).text.encode()


class Broken(NamedTuple):
    """An input that a target does not take well."""

    target: str
    number: int
    error: BaseException
    content: bytes


def content_of(target: Target, seed: int, number: int) -> bytes:
    """What a round reads."""
    chance = random.Random(f"{seed}/{target.name}/{number}")
    sample, other = chance.choice(target.samples), chance.choice(target.samples)
    return (reshaped(sample, other, chance) if number % 2 else None) or mutated(sample, other, chance)


def rounds(
    target: Target, seed: int, numbers: Iterable[int], most: int = 20, seconds: float = 1e9
) -> tuple[int, list[Broken]]:
    """Does the rounds; returns how many, and what broke, each kind of error once and ``most`` at most."""
    broken: dict[str, Broken] = {}
    until = time.monotonic() + seconds
    done = 0
    for number in numbers:
        if len(broken) >= most or time.monotonic() > until:
            break
        content = content_of(target, seed, number)
        began = time.process_time()
        try:
            try:
                target.read(content)
            except target.errors as error:
                assert not isinstance(error, Failure) or "\n" not in error.what, error.what
        except BaseException as error:
            trace = error.__traceback__
            while trace and trace.tb_next:
                trace = trace.tb_next
            where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
            broken.setdefault(f"{type(error).__name__} {where}", Broken(target.name, number, error, content))
        if time.process_time() - began > 2:
            slow = TimeoutError(f"it took {time.process_time() - began:.1f} s")
            broken.setdefault("slow", Broken(target.name, number, slow, content))
        done += 1
    return done, list(broken.values())


if __name__ == "__main__":
    wanted = next(target for target in targets() if target.name == sys.argv[1])
    content = content_of(wanted, int(sys.argv[2]), int(sys.argv[3]))
    print(content)
    wanted.read(content)
