"""The simulated `POST /chat/completions`: refuses, fails or completes a call, after the configured latency."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import orjson

from api_client.simulator.answer import HTML, Answer, coded_answer, flat_answer, retry_after_headers
from api_client.simulator.batching import BatchingServer
from api_client.simulator.call_log import CallLog
from api_client.simulator.completion import compose_completion, last_user_text
from api_client.simulator.config import SimulatorConfig
from api_client.simulator.connection import Connection, Request
from api_client.simulator.faults import FaultDraw
from api_client.simulator.lengths import draw_length
from api_client.simulator.limits import Limits, OverLimit
from api_client.simulator.refusal import Refused
from api_client.simulator.tally import Call, Tally
from api_client.simulator.validation import parse_request

FAILING_LATENCY_SHARE = 0.1
DRIP_INTERVAL_S = 0.25
LARGE_BYTES = 10 * 1024 * 1024
_FILLER = "All work and no play makes a large answer. "
# Escapes that are valid in JSON, for characters that no database stores as text.
_ODD_TEXTS = {"nul": b"\\u0000", "surrogate": b"\\ud83d"}
_BAD_GATEWAY = (
    b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
)
_OUTAGE_PAGE = b"<html><head><title>Away</title></head><body>The endpoint is away.</body></html>"
_HTML_PAGE = b"<!doctype html><html><head><title>Welcome</title></head><body>Please log in.</body></html>"


class Chat:
    """Receives chat calls that are already authorised, and answers them.

    Checks in this order: outage, calls at once, calls a minute, validation, fault, tokens a minute; so a fault never
    hides a bad request. Refusals and 429s are answered at once; a 500, a 502, a reset, and a 200 without a completion
    after a tenth of the latency; completions, whole, cut or odd, after the whole latency and the time that their tokens
    take. An answer that is sent byte by byte begins at once, and takes at least a minute.
    """

    def __init__(self, config: SimulatorConfig, tally: Tally, call_log: CallLog | None) -> None:
        self._tally = tally
        self._call_log = call_log
        self._latency_random = Random(config.seed)
        self._faults = FaultDraw(config, Random(config.seed))
        self._ids = Random()  # never seeded: a simulator that is started again must not use an id twice
        self._length_seed = Random().getrandbits(64) if config.seed is None else config.seed
        self._limits = Limits()
        self._batching: BatchingServer | None = None
        self._config = config
        self._configure_batching()

    def configure(self, config: SimulatorConfig) -> None:
        """Uses `config` for new calls. The faults of calls in flight stay as they were drawn."""
        self._config = config
        self._faults.configure(config)
        self._configure_batching()

    def receive(self, connection: Connection, request: Request, *, call: Call, request_id: str) -> None:
        """Answers a call. The caller has counted it as received."""
        config = self._config
        if config.outage_status is not None:
            page = Answer(config.outage_status, _OUTAGE_PAGE, request_id, content_type=HTML)
            then = partial(self._turn_away, connection, call, "outage", page)
            self._later(connection, call, self._latency_s() * FAILING_LATENCY_SHARE, then)
            return
        now = time.monotonic()
        over = self._limits.check_call(
            config,
            call.key,
            in_flight=self._tally.in_flight,
            of_key=self._tally.count_in_flight(call.key),
            now=now,
        )
        if over is not None:
            self._turn_away(connection, call, over.kind, _refusal(over, request_id))
            return
        try:
            if request.is_too_large:
                raise Refused(413, "the body is too large")
            decoded = parse_request(request.body, config.models)
        except Refused as refused:
            self._tally.refuse(call, refused.status)
            self._reply(connection, call, flat_answer(refused.status, refused.message, request_id))
            return
        fault = self._faults.draw()
        if fault == "429":
            over = OverLimit(fault, 429, config.retry_after_s)
            self._turn_away(connection, call, fault, _refusal(over, request_id))
        elif fault == "429_bare":
            self._turn_away(connection, call, fault, _refusal(OverLimit(fault, 429), request_id))
        elif fault == "hang":
            self._tally.hang(call, fault)
            connection.wait(None, None, partial(self._tally.end_hang, call))
        elif fault == "drip":
            self._tally.hang(call, fault)
            page = Answer(200, _HTML_PAGE, request_id)
            connection.drip(page, DRIP_INTERVAL_S, partial(self._tally.end_hang, call))
        elif fault in ("500", "502_html", "reset", "html", "empty"):
            then = partial(self._fail, connection, call, fault, request_id)
            self._later(connection, call, self._latency_s() * FAILING_LATENCY_SHARE, then)
        else:
            self._begin_completion(connection, call, decoded, fault, request_id)

    def _begin_completion(
        self, connection: Connection, call: Call, decoded: dict[str, Any], fault: str | None, request_id: str
    ) -> None:
        """Begins a completion, whole, odd or cut, unless it is over the tokens a minute."""
        completion = self._compose(decoded)
        usage = completion["usage"]
        over = self._limits.check_tokens(self._config, call.key, usage["total_tokens"], now=time.monotonic())
        if over is not None:
            self._turn_away(connection, call, over.kind, _refusal(over, request_id))
            return
        if fault == "large":
            completion["choices"][0]["message"]["content"] = _FILLER * (LARGE_BYTES // len(_FILLER))
        body = orjson.dumps(completion)
        if fault in _ODD_TEXTS:
            body = body.replace(b'"content":"', b'"content":"' + _ODD_TEXTS[fault], 1)
        if fault not in ("cut_json", "cut_body"):
            self._tally.start(call)
            then = partial(self._complete, connection, call, Answer(200, body, request_id), usage)
        else:
            then = partial(self._cut, connection, call, fault, body, request_id)
        if self._batching is not None:
            tokens = usage["completion_tokens"]
            then = partial(self._make_tokens, self._batching, connection, call, tokens, then)
        self._later(connection, call, self._latency_s(), then)

    def _compose(self, decoded: dict[str, Any]) -> dict[str, Any]:
        config, tokens = self._config, None
        if config.answer_tokens is not None:
            text = last_user_text(decoded["messages"])
            tokens = draw_length(
                config.answer_tokens, config.answer_spread, seed=self._length_seed, text=text
            )
        completion_id = f"resp-{self._ids.getrandbits(128):032x}"
        return compose_completion(
            decoded, completion_id=completion_id, created=int(time.time()), tokens=tokens
        )

    def _configure_batching(self) -> None:
        config = self._config
        if config.call_tokens_per_s is None:
            self._batching = None  # calls that it has come to their end in it
            return
        knee = None if config.knee is None else config.knee * config.capacity
        if self._batching is None:
            self._batching = BatchingServer(rate=config.call_tokens_per_s, knee=knee)
        else:
            self._batching.configure(rate=config.call_tokens_per_s, knee=knee)

    def _make_tokens(
        self,
        batching: BatchingServer,
        connection: Connection,
        call: Call,
        tokens: int,
        then: Callable[[], None],
    ) -> None:
        give_up = batching.enter(tokens, partial(connection.end_wait, then))

        def be_abandoned() -> None:
            give_up()
            self._tally.abandon(call)

        connection.wait(None, None, be_abandoned)

    def _latency_s(self) -> float:
        config = self._config
        if not config.latency_jitter:
            return config.latency_s
        return config.latency_s * (1.0 + config.latency_jitter * (2.0 * self._latency_random.random() - 1.0))

    def _later(self, connection: Connection, call: Call, delay_s: float, then: Callable[[], None]) -> None:
        if delay_s > 0:
            connection.wait(delay_s, then, partial(self._tally.abandon, call))
        else:
            then()

    def _complete(self, connection: Connection, call: Call, answer: Answer, usage: dict[str, Any]) -> None:
        self._tally.pay(
            call, prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"]
        )
        if self._call_log is not None:
            self._call_log.append(call.job, answer.status)
        self._reply(connection, call, answer)

    def _turn_away(self, connection: Connection, call: Call, kind: str, answer: Answer) -> None:
        self._tally.turn_away(call, kind)
        self._reply(connection, call, answer)

    def _fail(self, connection: Connection, call: Call, fault: str, request_id: str) -> None:
        self._tally.fail(call, fault)
        if fault == "500":
            self._reply(connection, call, flat_answer(500, "Internal Server Error", request_id))
        elif fault == "502_html":
            connection.reply(Answer(502, _BAD_GATEWAY, request_id, content_type=HTML))
        elif fault == "html":
            connection.reply(Answer(200, _HTML_PAGE, request_id, content_type=HTML))
        elif fault == "empty":
            connection.reply(Answer(200, b"", request_id))
        else:
            connection.reset()

    def _cut(self, connection: Connection, call: Call, fault: str, body: bytes, request_id: str) -> None:
        self._tally.fail(call, fault)
        half = body[: len(body) // 2]
        if fault == "cut_json":
            connection.reply(Answer(200, half, request_id))
        else:
            connection.cut_off(Answer(200, half, request_id, promised_length=len(body)))

    def _reply(self, connection: Connection, call: Call, answer: Answer) -> None:
        """Answers with what the endpoint itself says of its limits; pages of a proxy know nothing of them."""
        lines = self._limits.headers(self._config, call.key, now=time.monotonic())
        connection.reply(replace(answer, headers=answer.headers + lines) if lines else answer)


def _refusal(over: OverLimit, request_id: str) -> Answer:
    headers = b"" if over.wait_s is None else retry_after_headers(over.wait_s)
    if over.code is not None:
        return coded_answer(over.status, over.message, over.code, request_id, headers)
    return flat_answer(over.status, over.message, request_id, headers)
