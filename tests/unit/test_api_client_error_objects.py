"""An error object in a 200 is a failure, and its own code says which."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from api_client.answers import Answer, decide_completion, decide_models
from schemas.failure import Failure, FailureKind, Spent

MESSAGE = {"role": "assistant", "content": "half an ans"}
CHOICE = {"index": 0, "message": MESSAGE, "finish_reason": "stop"}
USAGE = {"prompt_tokens": 10, "completion_tokens": 5}
K = FailureKind


def decide(body: Any) -> Answer | Failure:
    return decide_completion(200, {}, orjson.dumps(body), wall_now_s=0.0)


def failure_of(body: Any) -> Failure:
    failure = decide(body)
    assert isinstance(failure, Failure)
    return failure


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"code": 502, "message": "upstream lost"}},
        {"error": {"code": 502, "message": "upstream lost"}, "choices": [CHOICE]},
        {"error": {"code": 502, "message": "upstream lost"}, "choices": []},
        {"error": {"code": 502, "message": "upstream lost"}, "choices": None},
        {"choices": [CHOICE | {"error": {"code": 502, "message": "upstream lost"}}]},
        {
            "choices": [
                CHOICE | {"finish_reason": "error", "error": {"code": 502, "message": "upstream lost"}}
            ]
        },
        {"choices": [CHOICE, CHOICE | {"index": 1, "error": {"code": 502, "message": "upstream lost"}}]},
        {"choices": [CHOICE | {"message": MESSAGE | {"error": {"code": 502, "message": "upstream lost"}}}]},
        [{"error": {"code": 502, "message": "upstream lost"}}],
        {"errors": [{"code": "502", "message": "upstream lost"}], "success": False},
        {"object": "error", "code": 502, "message": "upstream lost"},
        {"type": "error", "error": {"status": 502, "message": "upstream lost"}},
        {"code": 502, "message": "upstream lost"},
    ],
)
def test_an_error_object_is_never_a_success_wherever_it_stands(body: Any) -> None:
    failure = failure_of(body)
    assert failure.kind is K.SERVER_ERROR
    assert "upstream lost" in failure.message and failure.http_status == 502


@pytest.mark.parametrize("reason", ["error", "ERROR", " error "])
def test_a_finish_reason_of_error_is_no_success(reason: str) -> None:
    assert failure_of({"choices": [CHOICE | {"finish_reason": reason}]}).kind is K.BAD_RESPONSE


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 429, "message": "x"}, K.RATE_LIMITED),
        ({"code": "429", "message": "x"}, K.RATE_LIMITED),
        ({"code": 429.0}, K.RATE_LIMITED),
        ({"code": "HTTP 429"}, K.RATE_LIMITED),
        ({"status": 429, "code": "whatever"}, K.RATE_LIMITED),
        ({"code": 429, "type": "insufficient_quota"}, K.QUOTA),
        ({"code": 425}, K.RATE_LIMITED),
        ({"code": 401}, K.UNAUTHORIZED),
        ({"code": 402}, K.QUOTA),
        ({"code": 400}, K.REJECTED),
        ({"code": 404}, K.REJECTED),
        ({"code": 408}, K.SERVER_ERROR),
        ({"code": 500}, K.SERVER_ERROR),
        ({"code": 529}, K.SERVER_ERROR),
        ({"code": "rate_limit_exceeded", "type": "requests"}, K.RATE_LIMITED),
        ({"code": None, "type": "rate_limit_error"}, K.RATE_LIMITED),
        ({"type": "tokens", "code": "rate_limit_exceeded"}, K.RATE_LIMITED),
        ({"status": "RESOURCE_EXHAUSTED"}, K.RATE_LIMITED),
        ({"code": "Throttling.RateQuota"}, K.RATE_LIMITED),
        ({"type": "TooManyRequestsError"}, K.RATE_LIMITED),
        ({"code": "insufficient_quota", "type": "insufficient_quota"}, K.QUOTA),
        ({"type": "billing_hard_limit_reached"}, K.QUOTA),
        ({"code": "invalid_api_key", "type": "invalid_request_error"}, K.UNAUTHORIZED),
        ({"type": "authentication_error"}, K.UNAUTHORIZED),
        ({"type": "overloaded_error"}, K.SERVER_ERROR),
        ({"type": "server_error"}, K.SERVER_ERROR),
        ({"type": "InternalServerError"}, K.SERVER_ERROR),
        ({"code": "engine_overloaded"}, K.SERVER_ERROR),
        ({"status": "UNAVAILABLE"}, K.SERVER_ERROR),
        ({"code": "context_length_exceeded", "type": "invalid_request_error"}, K.REJECTED),
        ({"type": "BadRequestError"}, K.REJECTED),
        ({"code": "model_not_found"}, K.REJECTED),
        ({"code": 1302, "type": "rate_limit_error"}, K.RATE_LIMITED),
        ({"error": {"error": {"code": 429}}}, K.RATE_LIMITED),
        ([{"code": 429}], K.RATE_LIMITED),
        ("rate_limit_exceeded", K.RATE_LIMITED),
        ("the rate_limit of the sea was met", K.BAD_RESPONSE),
        ({"message": "nobody knows"}, K.BAD_RESPONSE),
        ({"code": 7}, K.BAD_RESPONSE),
        ({"code": True, "message": "x"}, K.BAD_RESPONSE),
        ({"code": {"a": 1}}, K.BAD_RESPONSE),
        (True, K.BAD_RESPONSE),
        (503, K.BAD_RESPONSE),
    ],
)
def test_an_error_s_own_code_says_which_failure_it_is(error: Any, kind: FailureKind) -> None:
    for body in ({"error": error}, {"error": error, "choices": [CHOICE]}):
        assert failure_of(body).kind is kind


@pytest.mark.parametrize(
    "nothing",
    [
        None,
        {},
        "",
        [],
        False,
        0,
        "null",
        {"code": None, "message": None},
        {"code": 0, "message": "", "param": {}},
        {"code": 200, "message": "OK"},
        {"code": "0", "message": "success"} | {"code": 0},
    ],
)
def test_an_error_in_which_nothing_is_said_is_none(nothing: Any) -> None:
    for body in (
        {"choices": [CHOICE], "error": nothing},
        {"choices": [CHOICE | {"error": nothing}]},
        {"choices": [CHOICE | {"message": MESSAGE | {"error": nothing}}]},
    ):
        assert isinstance(decide(body), Answer)


@pytest.mark.parametrize("beside", [{}, {"data": []}, {"models": None}])
def test_an_error_object_beside_an_empty_list_of_models_is_a_failure(beside: dict[str, Any]) -> None:
    body = orjson.dumps(beside | {"error": {"code": 401, "message": "key?"}})
    failure = decide_models(200, {}, body, wall_now_s=0.0)
    assert isinstance(failure, Failure) and failure.kind is K.UNAUTHORIZED


@pytest.mark.parametrize("depth", [100, 900, 1_020, 100_000])
@pytest.mark.parametrize("name", [b"error", b"errors", b"usage", b"message", b"choices"])
@pytest.mark.parametrize("start", [b"", b"data: "])
def test_nesting_of_any_depth_raises_nothing(depth: int, name: bytes, start: bytes) -> None:
    for opening, closing in ((b'{"error":', b"}"), (b"[", b"]")):
        nested = opening * depth + b"null" + closing * depth
        decide_completion(200, {}, start + b'{"%s": %s}' % (name, nested), wall_now_s=0.0)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"code": 500, "message": "x"}, "choices": [CHOICE]},
        {"choices": []},
        {"choices": [{"message": None}]},
        {"object": "list"},
    ],
)
def test_what_an_answer_of_no_use_cost_is_told(body: dict[str, Any]) -> None:
    assert failure_of(body | {"usage": USAGE, "model": "m1"}).spent == Spent("m1", 10, 5, 15)
    for nothing in (None, "many", {}, {"prompt_tokens": None}, {"prompt_tokens": 0, "total_tokens": "0"}):
        assert failure_of(body | {"usage": nothing}).spent is None


def test_an_error_status_with_usage_in_its_body_was_paid_for() -> None:
    failure = decide_completion(500, {}, orjson.dumps({"error": "x", "usage": USAGE}), wall_now_s=0.0)
    assert isinstance(failure, Failure) and failure.spent == Spent(None, 10, 5, 15)


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 100, "completion_tokens": 50}, (100, 50, 150)),
        ({"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": None}, (100, 50, 150)),
        ({"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 0}, (100, 50, 150)),
        ({"prompt_tokens": "100", "completion_tokens": "50.0", "total_tokens": " 150 "}, (100, 50, 150)),
        ({"prompt_tokens": 100.0, "completion_tokens": 50, "total_tokens": "x"}, (100, 50, 150)),
        ({"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 160}, (100, 50, 160)),
        ({"input_tokens": 100, "output_tokens": "50"}, (100, 50, 150)),
        ({"total_tokens": 150}, (0, 0, 150)),
        ({"prompt_tokens": -1, "completion_tokens": 50}, (0, 50, 50)),
        ({"prompt_tokens": "NaN", "completion_tokens": 1e300}, (0, 0, 0)),
        ({"prompt_tokens": "inf", "completion_tokens": "9" * 5000}, (0, 0, 0)),
        ({"prompt_tokens": True, "completion_tokens": [5]}, (0, 0, 0)),
    ],
)
def test_tokens_are_counted_however_they_are_written(
    usage: dict[str, Any], counts: tuple[int, int, int]
) -> None:
    answer = decide({"choices": [CHOICE], "usage": usage})
    assert isinstance(answer, Answer) and answer.completion.usage is not None
    found = answer.completion.usage
    assert (found.prompt_tokens, found.completion_tokens, found.total_tokens) == counts
