"""The three payloads: a database that answers with its name, an application that asks it, a proxy in front of both."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import socketserver
import sys
import urllib.request


class Database(socketserver.StreamRequestHandler):
    """Answers a line with the name of the place."""

    def handle(self) -> None:
        """One question a connection."""
        self.rfile.readline()
        self.wfile.write(f"database {sys.argv[2]}\n".encode())


class Application(http.server.BaseHTTPRequestHandler):
    """Asks the database for every request."""

    def do_GET(self) -> None:
        """What the database says."""
        with socket.create_connection((os.environ["DB_HOST"], int(os.environ["DB_PORT"])), timeout=30) as database:
            database.sendall(b"who?\n")
            said = database.makefile().readline().strip()
        answered(self, f"application, {said}")

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Edge(http.server.BaseHTTPRequestHandler):
    """Passes requests on to the application."""

    def do_GET(self) -> None:
        """What the application says."""
        place = f"http://{os.environ['APP_HOST']}:{os.environ['APP_PORT']}/"
        with urllib.request.urlopen(place, timeout=30) as answer:
            answered(self, f"edge, {answer.read().decode().strip()}")

    def log_message(self, *_: object) -> None:
        """Nothing."""


def answered(handler: http.server.BaseHTTPRequestHandler, text: str) -> None:
    """Answers a request with a line."""
    body = f"{text}\n".encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


class Server(socketserver.ThreadingTCPServer):
    """A thread a connection."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    port, kind = {"database": (5432, Database), "application": (8000, Application), "edge": (80, Edge)}[sys.argv[1]]
    # Process 1 of a container hears only signals that it has a handler for.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    Server(("0.0.0.0", port), kind).serve_forever()
