"""The simulator: a server that behaves as the documented endpoint, with faults on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from random import Random
from typing import Any
from urllib.parse import parse_qs

import orjson

from api_client.simulator.answer import Answer, coded_answer, flat_answer, json_answer
from api_client.simulator.auth import Auth
from api_client.simulator.call_log import CallLog
from api_client.simulator.changes import Changes
from api_client.simulator.chat import Chat
from api_client.simulator.config import SimulatorConfig
from api_client.simulator.connection import Connection, Request
from api_client.simulator.listener import Listener
from api_client.simulator.refusal import Refused
from api_client.simulator.series import BUCKET_S
from api_client.simulator.tally import Call, Tally
from api_client.simulator.validation import parse_request

_METHODS = {
    b"/models": b"GET",
    b"/chat/completions": b"POST",
    b"/simulator/stats": b"GET",
    b"/simulator/calls": b"GET",
    b"/simulator/series": b"GET",
    b"/simulator/faults": b"POST",
    b"/simulator/reset": b"POST",
}
_MAX_JOB_CHARACTERS = 200


class Simulator:
    """One simulated endpoint on the running event loop.

    The documented paths, with and without `/v1`, need the key. The paths under `/simulator` need none: `GET stats`,
    `GET calls?at_least=N&paid_at_least=N`, `GET series?every=N`, `POST faults` (see `change`), `POST reset`.
    """

    def __init__(self, config: SimulatorConfig) -> None:
        self._config = config
        self._auth = Auth(config)
        self._tally = Tally()
        self._ids = Random()
        self._connections: set[Connection] = set()
        self._listener = Listener(
            config.host, config.port, lambda: Connection(self._handle, self._connections)
        )
        self._call_log: CallLog | None = None

    async def start(self) -> str:
        """Listens, and returns the base URL without a path. Raises OSError if it cannot listen or log calls."""
        config = self._config
        if config.log_calls_path is not None:
            self._call_log = CallLog(config.log_calls_path)
        self._chat = Chat(config, self._tally, self._call_log)
        self._unauthorized_until = asyncio.get_running_loop().time() + config.unauthorized_for_s
        self._changes = Changes(config, self._configure)
        url = await self._listener.start()
        self._set_dead(config.is_dead)
        return url

    async def stop(self) -> None:
        """Stops listening and drops all connections, also those with calls in flight."""
        self._changes.close()
        await self._listener.stop()
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

    def series(self, *, every: int = 10) -> list[dict[str, Any]]:
        """Counts over time: a row for `every` so many tenths of a second, the oldest first, for an hour."""
        return self._tally.series(every=every)

    def reset(self) -> None:
        """Sets the counts to zero. Calls in flight stay in flight."""
        self._tally.reset()

    def change(self, changes: Mapping[str, Any]) -> None:
        """Changes options from the next call on, as `Changes.change`. Raises ValueError if a value is not valid.

        `unauthorized_for_s` counts from now on; 0 ends it.
        """
        after = self._changes.change(changes)
        if "unauthorized_for_s" in changes:
            self._unauthorized_until = asyncio.get_running_loop().time() + after.unauthorized_for_s

    def _configure(self, config: SimulatorConfig) -> None:
        if config.is_dead != self._config.is_dead:
            self._set_dead(config.is_dead)
        self._config = config
        self._auth = Auth(config)
        self._chat.configure(config)

    def _set_dead(self, is_dead: bool) -> None:
        self._listener.set_dead(is_dead)
        if is_dead:
            # In the next turn: the answer to the change itself is on its way by then.
            asyncio.get_running_loop().call_soon(self._drop_connections)

    def _drop_connections(self) -> None:
        for connection in list(self._connections):
            if not connection.is_closing:
                connection.abort()

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
        if self._config.is_dead:
            connection.cut_off(answer)  # an answer that is sent before the connections are dropped
        else:
            connection.reply(answer)

    def _receive_chat(self, request: Request, connection: Connection, request_id: str) -> None:
        if b"x-antrean-check" in request.headers:
            connection.reply(self._answer_check(request, request_id))
            return
        job = request.headers.get(b"x-antrean-job", b"")[:_MAX_JOB_CHARACTERS].decode("latin-1")
        key = self._auth.key_of(request.headers)
        call = Call(job, key if key is not None else next(iter(self._auth.presented(request.headers)), b""))
        self._tally.receive(call)
        if self._is_unauthorized_for_all():
            self._tally.turn_away(call, "401")
            connection.reply(flat_answer(401, "Unauthorized", request_id))
        elif key is None:
            self._tally.refuse(call, 401)
            connection.reply(flat_answer(401, "Unauthorized", request_id))
        elif self._auth.is_spent(key):
            self._tally.refuse(call, 402)
            connection.reply(coded_answer(402, "Insufficient credits", "insufficient_quota", request_id))
        else:
            self._chat.receive(connection, request, call=call, request_id=request_id)

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
            if self._config.models_status is not None:
                raise Refused(self._config.models_status, "the list of models is away")
            return {"data": [{"id": model} for model in self._config.models]}
        if path == b"/simulator/stats":
            return self.stats()
        if path == b"/simulator/calls":
            return self.calls(**_parse_numbers(query, "calls", "at_least", "paid_at_least"))
        if path == b"/simulator/series":
            every = _parse_numbers(query, "series", "every").get("every", 10)
            return {"every_s": max(1, every) * BUCKET_S, "rows": self.series(every=max(1, every))}
        if path == b"/simulator/reset":
            self.reset()
            return self.stats()
        try:
            changes = orjson.loads(request.body)
            if not isinstance(changes, dict):
                raise ValueError("the body must be a JSON object of options")
            if changes.get("is_dead") and changes.get("for_s") is None:
                raise ValueError("is_dead needs for_s: what is dead can be told nothing")
            self.change(changes)
        except ValueError as exc:  # includes orjson.JSONDecodeError
            raise Refused(400, str(exc)) from exc
        return {"changed": sorted(changes)}


def _parse_numbers(query: str, door: str, *names: str) -> dict[str, int]:
    numbers = {}
    for name, values in parse_qs(query, keep_blank_values=True).items():
        if name not in names or not values[-1].isdecimal():
            raise Refused(400, f"{door} takes {' and '.join(names)}, each a whole number")
        numbers[name] = int(values[-1])
    return numbers
