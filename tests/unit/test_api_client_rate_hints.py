"""What the headers of an answer say of rate limits, as many endpoints write it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from api_client.answers import Answer, decide_completion
from api_client.rate_hints import parse_rate_hints
from schemas.failure import FailureKind
from schemas.rates import Allowance, RateHints

NOW_S = 1_777_803_512.0  # 2026-05-03 10:18:32 UTC
PLAIN = {
    "date": "Sun, 03 May 2026 10:18:32 GMT",
    "content-type": "application/json",
    "content-length": "1200",
    "connection": "keep-alive",
    "server": "cloudflare",
    "cf-ray": "8f0-AMS",
    "x-request-id": "req_1",
    "strict-transport-security": "max-age=31536000",
    "openai-processing-ms": "512",
    "openai-version": "2020-10-01",
    "alt-svc": 'h3=":443"; ma=86400',
    "set-cookie": "__cf_bm=1",
}
OPENAI = {
    "x-ratelimit-limit-requests": "5000",
    "x-ratelimit-limit-tokens": "160000",
    "x-ratelimit-limit-tokens_usage_based": "160000",
    "x-ratelimit-remaining-requests": "4999",
    "x-ratelimit-remaining-tokens": "159976",
    "x-ratelimit-remaining-tokens_usage_based": "159976",
    "x-ratelimit-reset-requests": "12ms",
    "x-ratelimit-reset-tokens": "9ms",
    "x-ratelimit-reset-tokens_usage_based": "9ms",
}


def hints_of(**headers: str) -> RateHints | None:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return parse_rate_hints(names, wall_now_s=NOW_S)


TOLD: dict[str, tuple[dict[str, str], RateHints | None]] = {
    "nothing": (PLAIN, None),
    "openai": (PLAIN | OPENAI, RateHints(Allowance(5000, 4999, 0.012), Allowance(160_000, 159_976, 0.009))),
    "groq": (
        {
            "x-ratelimit-limit-requests": "14400",
            "x-ratelimit-remaining-requests": "14370",
            "x-ratelimit-reset-requests": "2m59.56s",
            "x-ratelimit-limit-tokens": "18000",
            "x-ratelimit-remaining-tokens": "0",
            "x-ratelimit-reset-tokens": "7.66s",
        },
        RateHints(Allowance(14_400, 14_370, 179.56), Allowance(18_000, 0, 7.66)),
    ),
    "azure": (
        {"x-ratelimit-remaining-requests": "-1", "x-ratelimit-remaining-tokens": "29995"},
        RateHints(tokens=Allowance(remaining=29_995)),
    ),
    "mistral, by the minute and the month": (
        {
            "x-ratelimit-limit-req-minute": "30",
            "x-ratelimit-remaining-req-minute": "29",
            "x-ratelimit-limit-tokens-minute": "500000",
            "x-ratelimit-remaining-tokens-minute": "499000",
            "x-ratelimit-limit-tokens-month": "1000000000",
            "x-ratelimit-remaining-tokens-month": "999000000",
        },
        RateHints(Allowance(30, 29), Allowance(500_000, 499_000)),
    ),
    "cerebras, the day is spent": (
        {
            "x-ratelimit-limit-requests-day": "14400",
            "x-ratelimit-remaining-requests-day": "0",
            "x-ratelimit-reset-requests-day": "33011.382867",
            "x-ratelimit-limit-tokens-minute": "60000",
            "x-ratelimit-remaining-tokens-minute": "0",
            "x-ratelimit-reset-tokens-minute": "11.38",
            "x-ratelimit-limit-tokens-day": "1000000",
            "x-ratelimit-remaining-tokens-day": "5",
            "x-ratelimit-reset-tokens-day": "33011.38",
        },
        RateHints(Allowance(14_400, 0, 33_011.382867), Allowance(60_000, 0, 11.38)),
    ),
    "openrouter, milliseconds of Unix time": (
        {"x-ratelimit-limit": "20", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "1777803540000"},
        RateHints(Allowance(20, 0, 28.0)),
    ),
    "seconds of Unix time": (
        {"x-ratelimit-limit": "60", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "1777803540"},
        RateHints(Allowance(60, 0, 28.0)),
    ),
    "Unix time beside the server's own clock": (
        {"x-ratelimit-reset": "1777800000", "date": "Sun, 03 May 2026 09:19:00 GMT"},
        RateHints(Allowance(reset_s=60.0)),
    ),
    "anthropic": (
        {
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "0",
            "anthropic-ratelimit-requests-reset": "2026-05-03T10:18:44Z",
            "anthropic-ratelimit-input-tokens-limit": "40000",
            "anthropic-ratelimit-input-tokens-remaining": "39000",
            "anthropic-ratelimit-output-tokens-remaining": "8000",
        },
        RateHints(Allowance(50, 0, 12.0), Allowance(remaining=8000)),
    ),
    "the draft of the IETF": (
        {"ratelimit-limit": "100, 100;w=60", "ratelimit-remaining": "0", "ratelimit-reset": "50"},
        RateHints(Allowance(100, 0, 50.0)),
    ),
    "an HTTP date": (
        {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "Sun, 03 May 2026 10:18:42 GMT"},
        RateHints(Allowance(None, 0, 10.0)),
    ),
    "unlimited": (
        {"x-ratelimit-limit-requests": "unlimited", "x-ratelimit-remaining-requests": "9223372036854775807"},
        RateHints(),
    ),
    "a limit of nothing, told with an answer": (
        {
            "x-ratelimit-limit-tokens": "0",
            "x-ratelimit-remaining-tokens": "0",
            "x-ratelimit-reset-tokens": "60",
        },
        RateHints(),
    ),
    "nonsense": (
        {
            "x-ratelimit-limit-requests": "many",
            "x-ratelimit-remaining-requests": "nan",
            "x-ratelimit-reset-requests": "soon",
            "x-ratelimit-remaining-tokens": "",
            "x-ratelimit-reset-tokens": "-5s",
        },
        RateHints(),
    ),
    "a reset that is over": (
        {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1777803000"},
        RateHints(Allowance(remaining=0)),
    ),
    "a reset in a year": (
        {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1809339512"},
        RateHints(Allowance(remaining=0)),
    ),
    "limits of other things": (
        {
            "x-ratelimit-remaining-images": "0",
            "x-ratelimit-reset-images": "60s",
            "x-ratelimit-resource": "core",
        },
        None,
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_limits_are_read_in_everybodys_headers(name: str) -> None:
    headers, hints = TOLD[name]
    found = parse_rate_hints(headers, wall_now_s=NOW_S)
    if hints is None or found is None:
        assert found is hints
        return
    for one, expected in ((found.requests, hints.requests), (found.tokens, hints.tokens)):
        assert (one.limit, one.remaining) == (expected.limit, expected.remaining)
        assert one.reset_s == (None if expected.reset_s is None else pytest.approx(expected.reset_s))


@pytest.mark.parametrize(
    ("name", "wait_s"),
    [
        ("openai", None),
        ("groq", 7.66),
        ("mistral, by the minute and the month", None),
        ("cerebras, the day is spent", 33_011.38),
        ("openrouter, milliseconds of Unix time", 28.0),
        ("a reset that is over", None),
        ("a limit of nothing, told with an answer", None),
    ],
)
def test_a_wait_is_known_where_nothing_is_left_and_the_reset_is_told(name: str, wait_s: float | None) -> None:
    found = parse_rate_hints(TOLD[name][0], wall_now_s=NOW_S)
    assert found is not None
    assert found.wait_s == (None if wait_s is None else pytest.approx(wait_s, rel=1e-3))


def decide(status: int, body: Any, headers: dict[str, str]) -> Any:
    return decide_completion(status, headers, json.dumps(body).encode(), wall_now_s=NOW_S)


def test_answers_and_failures_carry_the_hints() -> None:
    headers = TOLD["groq"][0]
    answer = decide(200, {"choices": [{"message": {"content": "hi"}}]}, headers)
    assert isinstance(answer, Answer)
    for status in (400, 429, 500):
        failure = decide(status, {}, headers)
        assert answer.rate_hints == failure.rate_hints != None  # noqa: E711
    assert decide(200, {"choices": []}, headers).rate_hints == answer.rate_hints


def test_a_429_without_another_wait_asks_for_that_of_its_limits() -> None:
    assert decide(429, {}, TOLD["groq"][0]).retry_after_s == pytest.approx(7.66)
    assert decide(429, {}, TOLD["groq"][0] | {"retry-after": "3"}).retry_after_s == 3.0
    assert decide(429, {"message": "try again in 2s"}, TOLD["groq"][0]).retry_after_s == 2.0


def test_the_headers_that_openrouter_quotes_in_its_body_count() -> None:
    quoted = {"X-RateLimit-Limit": "50", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1777803540000"}
    error = {
        "code": 429,
        "message": "Rate limit exceeded: free-models-per-day",
        "metadata": {"headers": quoted},
    }
    failure = decide(429, {"error": error}, {})
    assert (failure.kind, failure.retry_after_s) == (FailureKind.RATE_LIMITED, pytest.approx(28.0))


@pytest.mark.parametrize(("headers", "most_us"), [(PLAIN, 20), (PLAIN | OPENAI, 50)], ids=["none", "openai"])
def test_reading_them_costs_next_to_nothing(headers: dict[str, str], most_us: float) -> None:
    best_s = float("inf")
    for _ in range(20):
        began_s = time.perf_counter()
        for _ in range(100):
            parse_rate_hints(headers, wall_now_s=NOW_S)
        best_s = min(best_s, (time.perf_counter() - began_s) / 100)
    assert best_s * 1e6 <= most_us
