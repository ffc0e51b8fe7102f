"""Which refusals say that the account is empty, and which only that too much is asked at once, by real words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api_client.answers import Answer, decide_completion
from schemas.failure import Failure, FailureKind

K = FailureKind


def failure_of(status: int, body: Any, headers: dict[str, str] | None = None) -> Failure:
    outcome = decide_completion(status, headers or {}, json.dumps(body).encode(), wall_now_s=0.0)
    assert not isinstance(outcome, Answer)
    return outcome


def said(message: str, **codes: Any) -> dict[str, Any]:
    return {"error": {"message": message, **codes}}


PLAN = "You exceeded your current quota, please check your plan and billing details. For more information, read the docs."
EMPTY: dict[str, tuple[int, Any]] = {
    "openai": (429, said(PLAN, type="insufficient_quota", param=None, code="insufficient_quota")),
    "openai, its hard limit": (
        400,
        said(
            "Billing hard limit has been reached",
            type="invalid_request_error",
            code="billing_hard_limit_reached",
        ),
    ),
    "openai, the words alone": (429, said("Billing hard limit has been reached")),
    "openai, not active": (429, said("Your account is not active.", code="billing_not_active")),
    "openai, through litellm": (429, said(f"litellm.RateLimitError: OpenAIException - {PLAN}", code="429")),
    "anthropic": (
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing.",
            },
        },
    ),
    "anthropic, a usage cap": (
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "You have reached your specified API usage limits. You will regain access on 2026-06-01.",
            },
            "request_id": "req_011",
        },
    ),
    "deepseek": (402, said("Insufficient Balance", type="unknown_error", code="invalid_request_error")),
    "moonshot": (
        429,
        said("Your account is suspended, please check your plan.", type="exceeded_current_quota_error"),
    ),
    "openrouter, no credit": (402, said("Insufficient credits. Add more using the settings.", code=402)),
    "openrouter, the key's own limit": (
        403,
        said(
            "Key limit exceeded (daily limit).", code=403, metadata={"limit_source": "openrouter_key_limit"}
        ),
    ),
    "openrouter, one request is too dear": (
        402,
        said("needs more", code=402, metadata={"error_type": "weight_exceeds_budget"}),
    ),
    "xai": (
        403,
        {"error": "Your team has either used all available credits or reached its monthly spending limit."},
    ),
    "fireworks": (412, said("Account is suspended, possibly due to reaching the monthly spending limit")),
    "hugging face": (
        402,
        {"error": "You have exceeded your monthly included credits for Inference Providers."},
    ),
    "litellm, a budget": (
        400,
        said(
            "Budget has been exceeded! Current cost: 0.01, Max budget: 0.01",
            type="budget_exceeded",
            code="400",
        ),
    ),
    "alibaba": (
        400,
        said("Access denied, please make sure your account is in good standing.", code="Arrearage"),
    ),
    "zhipu": (429, said("余额不足或无可用资源包,请充值。", code="1113")),
    "an empty 402": (402, {}),
}
BUSY: dict[str, tuple[int, Any, dict[str, str]]] = {
    "openrouter, too much in flight": (
        402,
        said("busy", code=402, metadata={"error_type": "in_flight_budget_exhausted"}),
        {"retry-after": "3"},
    ),
    "the same, without a header": (
        402,
        said("busy", code=402, metadata={"limit_source": "openrouter_in_flight_budget"}),
        {},
    ),
    "the same code alone": (402, said("busy", code="in_flight_budget_exhausted"), {}),
    "a 402 that says when to come again": (402, said("Payment required"), {"retry-after": "3"}),
    "a 402 that says it in its body": (402, said("busy", retry_after=3), {}),
    "gemini, a limit by the minute in OpenAI's words": (
        429,
        [{"error": {"code": 429, "message": f"{PLAN} Please retry in 34.07s.", "status": "RESOURCE_EXHAUSTED"}}],
        {},
    ),
    "the same words with Retry-After": (429, said(PLAN), {"retry-after": "3"}),
    "groq": (429, said("Rate limit reached. Please try again in 7s. Need more tokens? Upgrade to Dev Tier at "
                       "https://console.groq.com/settings/billing", code="rate_limit_exceeded"), {}),
    "openai, a 503": (503, said("Slow down", code="slow_down"), {}),
    "google, a 403": (403, {"error": {"errors": [{"reason": "rateLimitExceeded"}], "code": 403, "message": "x"}}, {}),
    "bedrock": (429, {"message": "Too many tokens, please wait before trying again."}, {}),
}  # fmt: skip
OTHERS: dict[str, tuple[int, Any, FailureKind]] = {
    "a 400 that speaks of billing": (
        400,
        said("metadata.billing must be a string", code="invalid_value"),
        K.REJECTED,
    ),
    "a 400 that quotes the request far inside": (
        400,
        said("bad input: " + "x" * 800 + " your credit balance is too low"),
        K.REJECTED,
    ),
    "a 403 that denies": (
        403,
        said("You are not allowed to sample from this model", code="forbidden"),
        K.REJECTED,
    ),
    "a 404": (404, said("The model does not exist", code="model_not_found"), K.REJECTED),
    "a 422 with such words": (422, said("credit balance is too low"), K.REJECTED),
    "a refused key": (401, said(PLAN, code="insufficient_quota"), K.UNAUTHORIZED),
    "a 503": (503, said("overloaded", code="overloaded_error"), K.SERVER_ERROR),
    "a 529": (529, {"type": "error", "error": {"type": "overloaded_error"}}, K.SERVER_ERROR),
    "a 500 that speaks of credit": (500, said("credit balance is too low"), K.SERVER_ERROR),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_account_is_known_by_its_code_or_its_words_whatever_the_status(name: str) -> None:
    assert failure_of(*EMPTY[name]).kind is K.QUOTA


@pytest.mark.parametrize("name", BUSY)
def test_too_much_at_once_is_a_rate_limit_whatever_the_status(name: str) -> None:
    assert failure_of(*BUSY[name]).kind is K.RATE_LIMITED


@pytest.mark.parametrize("name", OTHERS)
def test_other_refusals_keep_their_kind(name: str) -> None:
    status, body, kind = OTHERS[name]
    assert failure_of(status, body).kind is kind


def test_a_code_of_an_empty_account_counts_beside_a_wait() -> None:
    for status in (402, 429):
        body = said(PLAN, code="insufficient_quota")
        assert failure_of(status, body, {"retry-after": "3600"}).kind is K.QUOTA


def test_the_same_is_read_inside_of_a_200() -> None:
    assert failure_of(200, said("busy", code=402, retry_after=3)).kind is K.RATE_LIMITED
    assert failure_of(200, said("no credit", code=402)).kind is K.QUOTA
    assert failure_of(200, said("Your credit balance is too low", code=400)).kind is K.QUOTA
