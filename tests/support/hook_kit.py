"""What `podrun hook test` printed, and a server for hooks to talk to."""

from __future__ import annotations

import http.server
import json
import threading
from typing import Any

from support.launcher import Podrun


def rows(done: Any) -> dict[str, tuple[str, str]]:
    assert done.stdout, done.stderr
    return {row["check"]: (row["result"], row["note"]) for row in map(json.loads, done.stdout.splitlines())}


def passes(podrun: Podrun, *words: Any) -> None:
    found = rows(podrun("hook", "test", "--format", "json", *words))
    failed = {check: note for check, (result, note) in found.items() if result == "FAILED"}
    assert not failed
    assert found["wrong version"][0] == "ok"
    assert len(found) == 13


class Server:
    """An HTTP server on loopback that remembers what it was asked and how long it let the asker wait."""

    def __init__(self, answers: Any, host: str = "127.0.0.1") -> None:
        self.asked = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append((self.path, dict(self.headers)))
                status, body = answers(self)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer((host, 0), Handler)
        self.url = f"http://{host}:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()
