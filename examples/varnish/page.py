"""The page's server: says which of them it is, and lets caches keep that for a second."""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Page(BaseHTTPRequestHandler):
    """Answers every GET."""

    def do_GET(self) -> None:
        """The page."""
        text = f"page {sys.argv[1]}\n".encode()
        self.send_response(200)
        self.send_header("Cache-Control", "max-age=1")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


ThreadingHTTPServer(("", 80), Page).serve_forever()
