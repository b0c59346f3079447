"""An HTTP server on this machine that says what a test tells it to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Said:
    """A request that came."""

    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Server:
    """Where it listens and what came, in order."""

    url: str
    requests: list[Said] = field(default_factory=list)


@contextmanager
def serving(reply: Callable[[int, Any], tuple[int, Any]], *, seconds: float = 0.0) -> Iterator[Server]:
    """Answer each POST with `reply(number of the request from 0, its JSON)`: a status, and JSON or a text.

    Args: seconds: how long each answer takes.
    """
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.requests)
                server.requests.append(Said(self.path, dict(self.headers), body))
            time.sleep(seconds)
            status, content = reply(number, body)
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Tests say what matters."""

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{listener.server_port}")
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join(5)
