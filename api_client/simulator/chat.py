"""The simulated `POST /chat/completions`: refuses, fails or completes a call, after the configured latency."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from random import Random

import orjson

from api_client.simulator.answer import HTML, Answer, flat_answer, retry_after_headers
from api_client.simulator.call_log import CallLog
from api_client.simulator.completion import compose_completion
from api_client.simulator.config import SimulatorConfig
from api_client.simulator.connection import Connection, Request
from api_client.simulator.faults import FaultDraw
from api_client.simulator.rate_window import RateWindow
from api_client.simulator.refusal import Refused
from api_client.simulator.tally import Tally
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

    Checks in this order: outage, rate limit, validation, fault; so a fault never hides a bad request. Refusals and 429s
    are answered at once; a 500, a 502, a reset, and a 200 without a completion after a tenth of the latency;
    completions, whole, cut or odd, after the whole latency. An answer that is sent byte by byte begins at once, and
    takes at least a minute.
    """

    def __init__(self, config: SimulatorConfig, tally: Tally, call_log: CallLog | None) -> None:
        self._tally = tally
        self._call_log = call_log
        self._latency_random = Random(config.seed)
        self._faults = FaultDraw(config, Random(config.seed))
        self._ids = Random()  # never seeded: a simulator that is started again must not use an id twice
        self._window = RateWindow()
        self._config = config

    def configure(self, config: SimulatorConfig) -> None:
        """Uses `config` for new calls. The faults of calls in flight stay as they were drawn."""
        self._config = config
        self._faults.configure(config)

    def receive(
        self, connection: Connection, request: Request, *, job: str, key: bytes, request_id: str
    ) -> None:
        """Answers a call. The caller has counted it as received."""
        config = self._config
        if config.outage_status is not None:
            page = Answer(config.outage_status, _OUTAGE_PAGE, request_id, content_type=HTML)
            then = partial(self._fail_at_once, connection, job, "outage", page)
            self._later(connection, job, self._latency_s() * FAILING_LATENCY_SHARE, then)
            return
        if config.rpm is not None:
            wait_s = self._window.admit(key, rpm=config.rpm, now=time.monotonic())
            if wait_s > 0:
                self._fail_at_once(connection, job, "rpm", _too_many_requests(request_id, wait_s))
                return
        try:
            if request.is_too_large:
                raise Refused(413, "the body is too large")
            decoded = parse_request(request.body, config.models)
        except Refused as refused:
            self._tally.refuse(job, refused.status)
            connection.reply(flat_answer(refused.status, refused.message, request_id))
            return
        fault = self._faults.draw()
        if fault == "429":
            self._fail_at_once(connection, job, fault, _too_many_requests(request_id, config.retry_after_s))
        elif fault == "429_bare":
            self._fail_at_once(connection, job, fault, _too_many_requests(request_id, None))
        elif fault == "hang":
            self._tally.hang(job, fault)
            connection.wait(None, None, self._tally.end_hang)
        elif fault == "drip":
            self._tally.hang(job, fault)
            connection.drip(Answer(200, _HTML_PAGE, request_id), DRIP_INTERVAL_S, self._tally.end_hang)
        elif fault in ("500", "502_html", "reset", "html", "empty"):
            then = partial(self._fail, connection, job, fault, request_id)
            self._later(connection, job, self._latency_s() * FAILING_LATENCY_SHARE, then)
        else:
            completion_id = f"resp-{self._ids.getrandbits(128):032x}"
            completion = compose_completion(decoded, completion_id=completion_id, created=int(time.time()))
            if fault == "large":
                completion["choices"][0]["message"]["content"] = _FILLER * (LARGE_BYTES // len(_FILLER))
            body = orjson.dumps(completion)
            if fault in _ODD_TEXTS:
                body = body.replace(b'"content":"', b'"content":"' + _ODD_TEXTS[fault], 1)
            if fault not in ("cut_json", "cut_body"):
                self._tally.start(job)
                then = partial(self._complete, connection, job, Answer(200, body, request_id))
            else:
                then = partial(self._cut, connection, job, fault, body, request_id)
            self._later(connection, job, self._latency_s(), then)

    def _latency_s(self) -> float:
        config = self._config
        if not config.latency_jitter:
            return config.latency_s
        return config.latency_s * (1.0 + config.latency_jitter * (2.0 * self._latency_random.random() - 1.0))

    def _later(self, connection: Connection, job: str, delay_s: float, then: Callable[[], None]) -> None:
        if delay_s > 0:
            connection.wait(delay_s, then, partial(self._tally.abandon, job))
        else:
            then()

    def _complete(self, connection: Connection, job: str, answer: Answer) -> None:
        self._tally.pay(job)
        if self._call_log is not None:
            self._call_log.append(job, answer.status)
        connection.reply(answer)

    def _fail_at_once(self, connection: Connection, job: str, kind: str, answer: Answer) -> None:
        self._tally.fail(job, kind)
        connection.reply(answer)

    def _fail(self, connection: Connection, job: str, fault: str, request_id: str) -> None:
        self._tally.fail(job, fault)
        if fault == "500":
            connection.reply(flat_answer(500, "Internal Server Error", request_id))
        elif fault == "502_html":
            connection.reply(Answer(502, _BAD_GATEWAY, request_id, content_type=HTML))
        elif fault == "html":
            connection.reply(Answer(200, _HTML_PAGE, request_id, content_type=HTML))
        elif fault == "empty":
            connection.reply(Answer(200, b"", request_id))
        else:
            connection.reset()

    def _cut(self, connection: Connection, job: str, fault: str, body: bytes, request_id: str) -> None:
        self._tally.fail(job, fault)
        half = body[: len(body) // 2]
        if fault == "cut_json":
            connection.reply(Answer(200, half, request_id))
        else:
            connection.cut_off(Answer(200, half, request_id, promised_length=len(body)))


def _too_many_requests(request_id: str, wait_s: float | None) -> Answer:
    headers = b"" if wait_s is None else retry_after_headers(wait_s)
    return flat_answer(429, "Too Many Requests", request_id, headers)
