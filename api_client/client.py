"""The client of the endpoint. Each call is one HTTP attempt."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from typing import TypeVar

from api_client.answers import Answer, decide_completion, decide_models
from api_client.breakage import describe_cut, describe_lack
from api_client.config import Credential, EndpointConfig, HeaderStyle
from api_client.deadline import Call, CallCut, CallRegister, Cut
from api_client.errors import ApiError, error_for
from api_client.transport import Received, Transport
from schemas.address import CHAT_PATH, MODELS_PATH
from schemas.chat import ChatRequest, encode_request
from schemas.failure import Failure, FailureKind
from schemas.shortage import is_local_shortage

_T = TypeVar("_T", Answer, list[str])
_Decide = Callable[[Received, float], "_T | Failure"]

_HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "gzip, deflate",
    "Content-Type": "application/json",
    "User-Agent": "antrean",
}


class EndpointClient:
    """Calls one endpoint from any number of threads. Never retries, never follows a redirect.

    All failures of the endpoint or of the connection are raised as ApiError (see `errors`).
    """

    def __init__(self, config: EndpointConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._transport = Transport(config)
        self._register = CallRegister(config.deadline_s, clock)

    def complete(
        self, body: bytes | ChatRequest, *, credential: Credential, job_id: str | None = None
    ) -> Answer:
        """The completion of one `POST …/chat/completions`. `job_id` is sent as the header `X-Antrean-Job`."""
        payload = encode_request(body).encode() if isinstance(body, ChatRequest) else body
        headers = _headers_for(credential)
        if job_id is not None:
            headers["X-Antrean-Job"] = _header_value(job_id)
        return self._post_chat(payload, headers, credential.secret)

    def probe_chat(self, model: str | None, *, credential: Credential) -> Answer:
        """Sends a chat request without messages, so that nothing is completed and paid.

        An endpoint refuses it. The refusal is raised as ApiError, and shows that an endpoint is there. The request has
        the header `X-Antrean-Check`.
        """
        payload = b"{}" if model is None else json.dumps({"model": model}).encode()
        headers = _headers_for(credential)
        headers["X-Antrean-Check"] = "1"
        return self._post_chat(payload, headers, credential.secret)

    def _post_chat(self, payload: bytes, headers: dict[str, str], secret: str | None) -> Answer:
        headers["Content-Length"] = str(len(payload))

        def decide(received: Received, latency_s: float) -> Answer | Failure:
            return decide_completion(
                received.status,
                received.headers,
                received.body,
                wall_now_s=time.time(),
                latency_s=latency_s,
                secret=secret,
            )

        return self._call("POST", CHAT_PATH, headers, payload, decide)

    def models(self, *, credential: Credential) -> list[str]:
        """The ids of `GET …/models`, in the endpoint's order."""
        secret = credential.secret

        def decide(received: Received, latency_s: float) -> list[str] | Failure:
            return decide_models(
                received.status, received.headers, received.body, wall_now_s=time.time(), secret=secret
            )

        return self._call("GET", MODELS_PATH, _headers_for(credential), None, decide)

    def cut_all_calls(self) -> int:
        """Cuts all calls in flight, and returns their number. These and all later calls raise Interrupted.

        A call that has received its whole completion by then still returns it.
        """
        return self._register.cut_all()

    @property
    def calls_in_flight(self) -> int:
        """The number of calls in flight, in all threads."""
        return len(self._register)

    @property
    def oldest_call_s(self) -> float | None:
        """For how many seconds the oldest call in flight has been so; None without one."""
        return self._register.oldest_s

    def close(self) -> None:
        """Closes the idle connections. Calls in flight go on; later calls raise Interrupted."""
        self._register.shut()
        self._transport.close()

    def _call(
        self, method: str, path: str, headers: dict[str, str], payload: bytes | None, decide: _Decide[_T]
    ) -> _T:
        try:
            call = self._register.begin()
        except CallCut:
            raise _error(describe_cut(Cut.SHUTDOWN, self._config), None, 0.0) from None
        except RuntimeError as exc:
            raise _error(self._describe_no_thread(exc), None, 0.0) from exc
        latency_s = 0.0
        try:
            outcome = self._transport.exchange(call, method, path, headers, payload)
        except RuntimeError as exc:
            outcome = self._describe_no_thread(exc)
        finally:
            latency_s = self._register.end(call)
        verdict = self._judge(call, outcome, decide, latency_s)
        if isinstance(verdict, Failure):
            raise _error(verdict, outcome if isinstance(outcome, Received) else None, latency_s)
        return verdict

    def _describe_no_thread(self, exc: RuntimeError) -> Failure:
        """The failure for a call for which no thread could be started. Any other RuntimeError is raised again."""
        if not is_local_shortage(exc):
            raise exc
        return describe_lack(exc, self._config)

    def _judge(
        self, call: Call, outcome: Received | Failure, decide: _Decide[_T], latency_s: float
    ) -> _T | Failure:
        """The answer if it is whole, even if its connection broke, as it is paid for. Else the failure."""
        if isinstance(outcome, Failure):
            return outcome if call.cut is None else describe_cut(call.cut, self._config)
        verdict = decide(outcome, latency_s)
        if not isinstance(verdict, Failure):
            return verdict
        if call.cut is Cut.SHUTDOWN:
            return describe_cut(call.cut, self._config)
        broken = outcome.broken if call.cut is None else describe_cut(call.cut, self._config)
        if broken is None or verdict.kind is not FailureKind.BAD_RESPONSE:
            return verdict  # a status other than 2xx tells more than a broken body
        words = f"HTTP {outcome.status}, but {broken.message}"
        return dataclasses.replace(verdict, kind=broken.kind, message=words)


def _error(failure: Failure, received: Received | None, latency_s: float) -> ApiError:
    return error_for(failure, latency_s=latency_s, raw=None if received is None else received.body)


def _headers_for(credential: Credential) -> dict[str, str]:
    headers = dict(_HEADERS)
    secret = credential.secret
    if secret is None:
        return headers
    if not (secret.isascii() and secret.isprintable()):
        words = "the key holds a character that a header cannot carry: was it copied whole?"
        raise _error(Failure(FailureKind.UNAUTHORIZED, words), None, 0.0)
    if credential.style is HeaderStyle.BEARER:
        headers["Authorization"] = f"Bearer {secret}"
    else:
        headers["api-key"] = secret
    return headers


def _header_value(job_id: str) -> str:
    if not (job_id.isascii() and job_id.isprintable()):
        raise ValueError("a job id must be printable ASCII")
    return job_id
