"""An endpoint of any shape: a test says what is at which path."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Said = tuple[int, Any]  # status; a body: bytes are sent as HTML, all else as JSON
Route = Said | Callable[[dict[str, Any]], Said]
Open = Callable[[Mapping[str, Route]], "Endpoint"]

NO_ROUTE: Said = (404, {"error": {"message": "no such route"}})
NO_MESSAGES: Said = (400, {"error": {"message": "messages: is required", "param": "messages"}})
HTML_PAGE: Said = (200, b"<!doctype html><html><title>Welcome</title></html>")


def completion(text: str = "ok") -> dict[str, Any]:
    """A whole completion."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "model": "m1", "choices": [choice], "usage": usage}


def chat(request: dict[str, Any]) -> Said:
    """What an endpoint answers that completes what has messages."""
    return (200, completion()) if request.get("messages") else NO_MESSAGES


@dataclass
class Endpoint:
    """Serves `routes` by method and path (`"POST /v1/chat/completions"`), without their query."""

    routes: Mapping[str, Route]
    otherwise: Said = NO_ROUTE
    requests: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)  # method, target, body

    def __post_init__(self) -> None:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer({})

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                self.answer(json.loads(raw))

            def answer(self, body: dict[str, Any]) -> None:
                endpoint.requests.append((self.command, self.path, body))
                route = endpoint.routes.get(
                    f"{self.command} {self.path.partition('?')[0]}", endpoint.otherwise
                )
                status, said = route(body) if callable(route) else route
                raw = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                self.send_header(
                    "Content-Type", "text/html" if isinstance(said, bytes) else "application/json"
                )
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def paid(self) -> int:
        """How many requests with messages came to a chat address."""
        return sum(
            "/chat/completions" in target and bool(body.get("messages")) for _, target, body in self.requests
        )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def api(
    root: str, *, models: Route = (200, {"data": [{"id": "m1"}]}), answer: Route = chat
) -> dict[str, Route]:
    """The routes of an API at `root`."""
    return {f"GET {root}/models": models, f"POST {root}/chat/completions": answer}
