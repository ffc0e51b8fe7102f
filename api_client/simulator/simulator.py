"""The simulator: a server that behaves as the documented endpoint, with faults on demand."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from random import Random
from typing import Any
from urllib.parse import parse_qs

import orjson

from api_client.simulator.answer import Answer, flat_answer, json_answer
from api_client.simulator.auth import Auth
from api_client.simulator.call_log import CallLog
from api_client.simulator.chat import Chat
from api_client.simulator.config import SimulatorConfig
from api_client.simulator.connection import Connection, Request
from api_client.simulator.refusal import Refused
from api_client.simulator.tally import Tally
from api_client.simulator.validation import parse_request

_BACKLOG = 4096
_METHODS = {
    b"/models": b"GET",
    b"/chat/completions": b"POST",
    b"/simulator/stats": b"GET",
    b"/simulator/calls": b"GET",
    b"/simulator/faults": b"POST",
    b"/simulator/reset": b"POST",
}
_MAX_JOB_CHARACTERS = 200


class Simulator:
    """One simulated endpoint on the running event loop.

    The documented paths, with and without `/v1`, need the key. The paths under `/simulator` need none: `GET stats`,
    `GET calls?at_least=N&paid_at_least=N`, `POST faults` (see `change`), `POST reset`.
    """

    def __init__(self, config: SimulatorConfig) -> None:
        self._config = config
        self._auth = Auth(config)
        self._tally = Tally()
        self._ids = Random()
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._call_log: CallLog | None = None
        self._revert_timer: asyncio.TimerHandle | None = None
        self._config_before: SimulatorConfig | None = None

    async def start(self) -> str:
        """Listens, and returns the base URL without a path. Raises OSError if it cannot listen or log calls."""
        loop = asyncio.get_running_loop()
        config = self._config
        if config.log_calls_path is not None:
            self._call_log = CallLog(config.log_calls_path)
        self._chat = Chat(config, self._tally, self._call_log)
        self._unauthorized_until = loop.time() + config.unauthorized_for_s
        listener = socket.create_server(
            (config.host, config.port), backlog=_BACKLOG, family=_family(config.host)
        )
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
        port = listener.getsockname()[1]
        self._server = await loop.create_server(
            lambda: Connection(self._handle, self._connections), sock=listener, backlog=_BACKLOG
        )
        host = f"[{config.host}]" if ":" in config.host else config.host
        return f"http://{host}:{port}"

    async def stop(self) -> None:
        """Stops listening and drops all connections, also those with calls in flight."""
        if self._revert_timer is not None:
            self._revert_timer.cancel()
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.abort()
        while self._connections:
            await asyncio.sleep(0)  # in the next turn each connection notices it, and counts its call
        if self._call_log is not None:
            self._call_log.close()

    def stats(self) -> dict[str, Any]:
        """The counts of all chat calls, as in the answer to `GET /simulator/stats`."""
        return self._tally.stats()

    def calls(self, *, at_least: int = 0, paid_at_least: int = 0) -> dict[str, dict[str, int]]:
        """The counts of each job with at least so many received and paid calls, in the order of their first calls."""
        return self._tally.calls_by_job(at_least=at_least, paid_at_least=paid_at_least)

    def reset(self) -> None:
        """Sets the counts to zero. Calls in flight stay in flight."""
        self._tally.reset()

    def change(self, changes: Mapping[str, Any]) -> None:
        """Changes options from the next call on. Raises ValueError with a sentence if a value is not valid.

        With `for_s` among the changes, they are undone after so many seconds, or at the next change.
        `unauthorized_for_s` counts from now on; 0 ends it.
        """
        loop = asyncio.get_running_loop()
        options = dict(changes)
        for_s = options.pop("for_s", None)
        if for_s is not None and (
            isinstance(for_s, bool) or not isinstance(for_s, int | float) or for_s <= 0
        ):
            raise ValueError(f"for_s must be a number above 0, not {for_s!r}")
        before = self._config if self._config_before is None else self._config_before
        after = before.changed(options)
        if self._revert_timer is not None:
            self._revert_timer.cancel()
            self._revert_timer = self._config_before = None
        self._configure(after)
        if "unauthorized_for_s" in options:
            self._unauthorized_until = loop.time() + after.unauthorized_for_s
        if for_s is not None:
            self._config_before = before
            self._revert_timer = loop.call_later(for_s, self._revert)

    def _revert(self) -> None:
        assert self._config_before is not None
        self._configure(self._config_before)
        self._revert_timer = self._config_before = None

    def _configure(self, config: SimulatorConfig) -> None:
        self._config = config
        self._auth = Auth(config)
        self._chat.configure(config)

    def _handle(self, request: Request, connection: Connection) -> None:
        request_id = f"{self._ids.getrandbits(128):032x}"
        path, _, query = request.target.partition(b"?")
        path = path.removeprefix(b"/v1")
        if path == b"/chat/completions" and request.method == b"POST":
            self._receive_chat(request, connection, request_id)
            return
        try:
            answer = json_answer(self._answer(request, path, query.decode("latin-1")), request_id)
        except Refused as refused:
            headers = b"allow: %s\r\n" % _METHODS[path] if refused.status == 405 else b""
            answer = flat_answer(refused.status, refused.message, request_id, headers)
        connection.reply(answer)

    def _receive_chat(self, request: Request, connection: Connection, request_id: str) -> None:
        if b"x-antrean-check" in request.headers:
            connection.reply(self._answer_check(request, request_id))
            return
        job = request.headers.get(b"x-antrean-job", b"")[:_MAX_JOB_CHARACTERS].decode("latin-1")
        self._tally.receive(job)
        key = self._auth.key_of(request.headers)
        if self._is_unauthorized_for_all():
            self._tally.fail(job, "401")
            connection.reply(flat_answer(401, "Unauthorized", request_id))
        elif key is None:
            self._tally.refuse(job, 401)
            connection.reply(flat_answer(401, "Unauthorized", request_id))
        elif self._auth.is_spent(key):
            self._tally.refuse(job, 402)
            connection.reply(flat_answer(402, "Insufficient credits", request_id))
        else:
            self._chat.receive(connection, request, job=job, key=key, request_id=request_id)

    def _answer_check(self, request: Request, request_id: str) -> Answer:
        """The answer to a request of `antrean check`. It is no call: it is not counted, and no fault is drawn."""
        if self._is_unauthorized_for_all() or self._auth.key_of(request.headers) is None:
            return flat_answer(401, "Unauthorized", request_id)
        try:
            parse_request(request.body, self._config.models)
        except Refused as refused:
            return flat_answer(refused.status, refused.message, request_id)
        return flat_answer(400, "a request with X-Antrean-Check is not completed", request_id)

    def _is_unauthorized_for_all(self) -> bool:
        return asyncio.get_running_loop().time() < self._unauthorized_until

    def _answer(self, request: Request, path: bytes, query: str) -> Any:
        if not request.method:
            raise Refused(400, "the request is not readable as HTTP")
        if path not in _METHODS or (path.startswith(b"/simulator") and request.target.startswith(b"/v1")):
            raise Refused(404, "Not Found")
        if request.method != _METHODS[path]:
            raise Refused(405, "Method Not Allowed")
        if path == b"/models":
            if self._is_unauthorized_for_all() or self._auth.key_of(request.headers) is None:
                raise Refused(401, "Unauthorized")
            return {"data": [{"id": model} for model in self._config.models]}
        if path == b"/simulator/stats":
            return self.stats()
        if path == b"/simulator/calls":
            return self.calls(**_parse_thresholds(query))
        if path == b"/simulator/reset":
            self.reset()
            return self.stats()
        try:
            changes = orjson.loads(request.body)
            if not isinstance(changes, dict):
                raise ValueError("the body must be a JSON object of options")
            self.change(changes)
        except ValueError as exc:  # includes orjson.JSONDecodeError
            raise Refused(400, str(exc)) from exc
        return {"changed": sorted(changes)}


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _parse_thresholds(query: str) -> dict[str, int]:
    thresholds = {}
    for name, values in parse_qs(query, keep_blank_values=True).items():
        if name not in ("at_least", "paid_at_least") or not values[-1].isdecimal():
            raise Refused(400, "calls takes at_least and paid_at_least, each a whole number")
        thresholds[name] = int(values[-1])
    return thresholds
