"""A payload that answers HTTP and ends in an orderly way, and a client that keeps it busy and counts what fails.

As a program it is the client: python busy.py ADDRESS PORT CONNECTIONS keep|one, until it is sent SIGTERM; it prints one
line of JSON then (see :class:`Busy`).
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import pairwise
from typing import NamedTuple

#: Answers "VERSION"; after SIGTERM it takes no more connections, answers each once more and closes it (ABRUPT: closes
#: those that are idle at once), and ends when none is left. REUSE: it listens with SO_REUSEPORT.
SERVER = """
import os, signal, socket, threading
server = socket.create_server(("::", int(os.environ.get("PORT", "80"))), family=socket.AF_INET6, backlog=512, dualstack_ipv6=True,
    reuse_port="REUSE" in os.environ)
ending, idle = threading.Event(), set()
def serve(connection):
    lines = connection.makefile("rb")
    while True:
        idle.add(connection)
        words = lines.readline()
        idle.discard(connection)
        if not words:
            break
        last = False
        while (line := lines.readline().strip()):
            last = last or line.lower() == b"connection: close"
        last = last or ending.is_set()
        body = os.environ["VERSION"].encode()
        head = b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n%s\\r\\n" % (len(body), b"Connection: close\\r\\n" if last else b"")
        connection.sendall(head + body)
        if last:
            break
    lines.close()
    connection.close()
def end(*_):
    ending.set()
    server.close()
    for connection in list(idle) if os.environ.get("ABRUPT") else ():
        connection.shutdown(socket.SHUT_RDWR)
signal.signal(signal.SIGTERM, end)
while not ending.is_set():
    try:
        threading.Thread(target=serve, args=[server.accept()[0]]).start()
    except OSError:
        break
"""


class Count(NamedTuple):
    """What a client has seen. Times are milliseconds."""

    requests: int
    failed: int
    p99: float
    #: The longest time in which no request was answered.
    gap: float
    #: What went wrong, and how often; how many answers each version gave.
    why: dict[str, int]
    versions: dict[str, int]


class Busy:
    """A client that keeps ``connections`` busy from when it is made; :meth:`stop` ends it and counts."""

    def __init__(
        self, address: str, port: int, connections: int = 8, *, keep: bool, netns: list[str] | None = None
    ) -> None:
        argv = [sys.executable, __file__, address, str(port), str(connections), "keep" if keep else "one"]
        self.process = subprocess.Popen([*(netns or []), *argv], stdout=subprocess.PIPE, text=True)

    def stop(self) -> Count:
        self.process.terminate()
        said, _ = self.process.communicate(timeout=30)
        return Count(**json.loads(said))


def _client(address: str, port: int, keep: bool, stop: threading.Event, seen: list[tuple[float, float, str]]) -> None:
    connection = None
    close = b"" if keep else b"Connection: close\r\n"
    while not stop.is_set():
        began = time.monotonic()
        try:
            if connection is None:
                connection = socket.create_connection((address, port), timeout=10)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + close + b"\r\n")
            answer = b""
            while b"\r\n\r\n" not in answer:
                part = connection.recv(4096)
                if not part:
                    raise ConnectionResetError("closed without an answer")
                answer += part
            head, _, body = answer.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            while len(body) < length:
                body += connection.recv(4096)
            said = body.decode()
            last = b"connection: close" in head.lower()
        except OSError as error:
            said, last = f"!{type(error).__name__}: {error}", True
        if last and connection:
            connection.close()
            connection = None
        seen.append((began, time.monotonic(), said))
        if said[0] == "!":
            time.sleep(0.01)


def main(address: str, port: str, connections: str, how: str) -> None:
    stop, seen = threading.Event(), []
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    arguments = (address, int(port), how == "keep", stop, seen)
    threads = [threading.Thread(target=_client, args=arguments) for _ in range(int(connections))]
    for thread in threads:
        thread.start()
    while not stop.wait(0.1):
        pass
    for thread in threads:
        thread.join()
    good = [(began, ended, said) for began, ended, said in seen if said[0] != "!"]
    times = sorted(ended - began for began, ended, _ in good) or [0.0]
    ends = sorted(ended for _, ended, _ in good)
    gap = max((after - before for before, after in pairwise(ends)), default=0.0)
    why = Counter(said[1:] for _, _, said in seen if said[0] == "!")
    found = Count(
        len(seen), len(seen) - len(good), round(times[len(times) * 99 // 100] * 1000, 1), round(gap * 1000, 1),
        dict(why), dict(Counter(said for _, _, said in good)),
    )  # fmt: skip
    print(json.dumps(found._asdict()))


if __name__ == "__main__":
    main(*sys.argv[1:])
