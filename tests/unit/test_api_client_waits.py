"""How long a refusal asks to wait, in the words of many endpoints."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api_client.answers import Answer, decide_completion
from api_client.durations import parse_duration
from schemas.failure import Failure, FailureKind

NOW_S = 1_777_803_512.0  # 2026-05-03 10:18:32 UTC


def failure_of(body: Any, status: int = 429, **headers: str) -> Failure:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    outcome = decide_completion(status, names, raw, wall_now_s=NOW_S)
    assert not isinstance(outcome, Answer)
    return outcome


def openai(message: str, code: str = "rate_limit_exceeded") -> dict[str, Any]:
    return {"error": {"message": message, "type": "tokens", "param": None, "code": code}}


GEMINI = [
    {
        "error": {
            "code": 429,
            "message": "You exceeded your current quota, please check your plan and billing details. For more "
            "information on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits.\n"
            + "* Quota exceeded for metric: generate_content_free_tier_requests, limit: 20\n" * 6
            + "Please retry in 34.074824224s.",
            "status": "RESOURCE_EXHAUSTED",
            "details": [
                {
                    "@type": "type.googleapis.com/google.rpc.QuotaFailure",
                    "violations": [{"quotaValue": "20"}],
                },
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34s"},
            ],
        }
    }
]
TOLD: dict[str, tuple[Any, float | None]] = {
    "openai, seconds": (
        openai(
            "Rate limit reached for gpt-4o in organization org-1 on tokens per min (TPM): Limit 30000, Used 29523, "
            "Requested 1024. Please try again in 1.094s. Visit https://platform.openai.com/account/rate-limits."
        ),
        1.094,
    ),
    "openai, Go's duration": (openai("Limit 200 / day. Please try again in 7m12s. Contact us."), 432.0),
    "openai, zero seconds in it": (openai("Please try again in 6m0s."), 360.0),
    "openai, milliseconds": (openai("Please try again in 86ms."), 0.086),
    "openai, hours": (openai("Please try again in 1h30m2.5s."), 5402.5),
    "groq": (
        openai(
            "Rate limit reached for model `llama3-70b-8192` on tokens per minute (TPM): Limit 7000, Used 0, Requested "
            "~12903. Please try again in 50.597142857s. Visit https://console.groq.com/docs/rate-limits."
        ),
        50.597142857,
    ),
    "azure": (
        {
            "error": {
                "code": "429",
                "message": "Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2023-05-15 "
                "have exceeded token rate limit of your current AIServices S0 pricing tier. Please retry after 45 "
                "seconds. Please go here: https://aka.ms/oai/quotaincrease if you would like to raise it.",
            }
        },
        45.0,
    ),
    "azure, a day": (openai("have exceeded token rate limit. Please retry after 86400 seconds."), 86_400.0),
    "azure, one second": (openai("Please retry after 1 second."), 1.0),
    "anthropic, which tells it in a header": (
        {
            "type": "error",
            "error": {
                "type": "rate_limit_error",
                "message": "This request would exceed your rate limit. Try again later.",
            },
        },
        None,
    ),
    "openrouter, a field": (
        {
            "error": {
                "code": 429,
                "message": "Provider returned error",
                "metadata": {"raw": "m is temporarily rate-limited upstream.", "retry_after": 12},
            }
        },
        12.0,
    ),
    "openrouter, the headers of its upstream": (
        {"error": {"code": 429, "message": "busy", "metadata": {"headers": {"Retry-After": "4"}}}},
        4.0,
    ),
    "mistral, which tells nothing": (
        {
            "object": "error",
            "message": "Requests rate limit exceeded",
            "type": "rate_limited",
            "code": "1300",
        },
        None,
    ),
    "gemini, a list": (GEMINI, 34.0),
    "gemini, the words alone": ([{"error": GEMINI[0]["error"] | {"details": []}}], 34.074824224),
    "google, a part of a second": ({"error": {"details": [{"retryDelay": "0.5s"}]}}, 0.5),
    "google, minutes": ({"error": {"details": [{"retryDelay": "1h16m0.667s"}]}}, 4560.667),
    "vllm, which tells nothing": ({"object": "error", "message": "Too many requests", "code": 429}, None),
    "litellm, its cooldown": (
        openai(
            "No deployments available for selected model, Try again in 5 seconds. Passed model=gpt-4o.", "429"
        ),
        5.0,
    ),
    "litellm, another's words": (
        openai(
            "litellm.RateLimitError: RateLimitError: AzureException - Please retry after 33 seconds.", "429"
        ),
        33.0,
    ),
    "litellm, a date": (
        openai("Limit type: tokens. Current limit: 200. Limit resets at: 2026-05-03 10:19:12 UTC", "429"),
        40.0,
    ),
    "litellm, a date that is over": (openai("Limit resets at: 2026-05-03 10:18:12 UTC"), None),
    "no date": (openai("Limit resets at: 2026-99-03 10:18:12 UTC"), None),
    "moonshot": (openai("request reached max organization RPM: 3, please try again after 1 seconds"), 1.0),
    "github models": (
        openai("Rate limit of 15 per 60s exceeded. Please wait 34 seconds before retrying."),
        34.0,
    ),
    "copilot": (openai("Please wait 10 hours 58 minutes before trying again."), 39_480.0),
    "words of several parts": (openai("retry after 1 minute and 5 seconds"), 65.0),
    "several waits": (openai("Please try again in 1s. On another limit, try again in 20s."), 20.0),
    "a flat field": ({"message": "slow down", "retry_after_ms": 1500}, 1.5),
    "a field as text": ({"error": "rate_limited", "retryAfter": "7"}, 7.0),
    "a plain text": (b"Too many requests, try again in 3 seconds", 3.0),
    "more than a day": (openai("Please try again in 2 days."), None),
    "a year in a field": ({"retry_after": 31_536_000}, None),
    "a negative field": ({"retry_after": -1}, None),
    "no wait": (openai("Please try again in 0s."), None),
    "not a number": ({"retry_after": "nan"}, None),
    "truth": ({"retry_after": True}, None),
    "a field of another shape": ({"retry_after": {"at": ["soon"]}}, None),
    "too many digits": (openai("Please try again in " + "9" * 400 + "s."), None),
    "no unit": (openai("Please try again in 5."), None),
    "another unit": (openai("Please try again in 5 moons."), None),
    "a limit and no wait": (openai("Limit 3 requests per 20s exceeded"), None),
}


@pytest.mark.parametrize("name", TOLD)
def test_the_wait_that_a_body_asks_for_is_read_in_everybodys_words(name: str) -> None:
    body, wait_s = TOLD[name]
    assert failure_of(body).retry_after_s == (None if wait_s is None else pytest.approx(wait_s))


def test_the_headers_come_before_the_body() -> None:
    assert failure_of(TOLD["azure"][0], retry_after="2").retry_after_s == 2.0
    assert failure_of(TOLD["azure"][0], retry_after="soon").retry_after_s == 45.0


@pytest.mark.parametrize("status", [402, 425, 429, 503, 529])
def test_the_words_of_an_answer_that_asks_to_come_later_count(status: int) -> None:
    assert failure_of(openai("Please try again in 9s.", ""), status).retry_after_s == 9.0


@pytest.mark.parametrize("status", [400, 401, 404, 422, 500])
def test_the_words_of_another_answer_do_not_as_they_may_quote_the_request(status: int) -> None:
    assert failure_of(openai("invalid: 'Please try again in 9s.'", ""), status).retry_after_s is None


def test_a_wait_told_in_a_200_counts() -> None:
    failure = failure_of({"error": {"code": 429, "message": "Please try again in 9s."}}, 200)
    assert (failure.kind, failure.retry_after_s) == (FailureKind.RATE_LIMITED, 9.0)


def test_a_huge_body_is_looked_into_only_so_far() -> None:
    deep: Any = {"retry_after": 5}
    for _ in range(20):
        deep = {"inner": deep}
    assert failure_of(deep).retry_after_s is None
    wide = {str(n): {"a": 1} for n in range(5000)} | {"message": "x " * 100_000 + "try again in 9s"}
    assert failure_of(wide).retry_after_s is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("12ms", 0.012),
        ("2m59.56s", 179.56),
        ("1h", 3600.0),
        ("250µs", 0.00025),
        ("1d2h", 93_600.0),
        (" 5 seconds ", 5.0),
        ("5", None),
        ("", None),
        ("s", None),
        ("-1s", None),
        ("1 sx", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == (None if seconds is None else pytest.approx(seconds))
