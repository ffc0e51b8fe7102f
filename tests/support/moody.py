"""An endpoint that answers each job as the test says: by the last message's text, and by its mood of the moment."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Reply = tuple[int, dict[str, Any] | list[Any] | bytes]
MODEL = "DeepSeek-V3.1"


def completion(text: str) -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
    return 200, {"object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}


class MoodyEndpoint:
    """`decide` takes a call's text and gives its answer; it may be replaced at any time. `calls` counts by text.

    `on_body` sees each call's body. `headers` go with every answer to a call. `models` is the answer to a request for the models; `asked` counts these.
    """

    def __init__(self, decide: Callable[[str], Reply] = completion) -> None:
        self.decide = decide
        self.on_body: Callable[[dict[str, Any]], object] = lambda body: None
        self.calls: Counter[str] = Counter()
        self.headers: dict[str, str] = {}
        self.models: Reply = (200, {"object": "list", "data": [{"id": MODEL}]})
        self.asked = 0
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                endpoint.asked += 1
                self._reply(*endpoint.models, {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not body.get("messages"):  # a command asks whether anything is here
                    self._reply(400, {"message": "messages is missing"}, {})
                    return
                text = body["messages"][-1]["content"]
                endpoint.calls[text] += 1
                endpoint.on_body(body)
                self._reply(*endpoint.decide(text), endpoint.headers)

            def _reply(
                self, status: int, body: dict[str, Any] | list[Any] | bytes, headers: dict[str, str]
            ) -> None:
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                kind = "text/html" if isinstance(body, bytes) else "application/json"
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(raw)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> MoodyEndpoint:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
