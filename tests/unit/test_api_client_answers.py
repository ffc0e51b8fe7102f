"""What each answer means, without a network."""

from __future__ import annotations

import json
import math
import pickle
import unicodedata
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api_client.answers import Answer, decide_completion, decide_models
from api_client.config import Credential, EndpointConfig, HeaderStyle
from api_client.errors import QuotaSpent, error_for
from schemas.failure import Failure, FailureKind

NOW_S = 1_777_803_512.0
MESSAGE = {"role": "assistant", "content": "hi"}
COMPLETION: dict[str, Any] = {
    "id": "resp-1",
    "choices": [{"index": 0, "message": MESSAGE}],
    "extra": {"kept": 1},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=12,  # larger ones are mostly thrown away half made: on a busy machine Hypothesis gives up for that
)


def decide(body: Any, status: int = 200, secret: str | None = None, **headers: str) -> Answer | Failure:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return decide_completion(status, named, raw, wall_now_s=NOW_S, secret=secret)


def failure_of(body: Any, status: int = 200, secret: str | None = None, **headers: str) -> Failure:
    failure = decide(body, status, secret, **headers)
    assert isinstance(failure, Failure)
    return failure


def answer_of(body: Any) -> Answer:
    answer = decide(body)
    assert isinstance(answer, Answer)
    return answer


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the body is empty"),
        (b" \n", "the body is empty"),
        (b"<!DOCTYPE html><title>Welcome</title><p>x", 'an HTML page titled "Welcome"'),
        (orjson.dumps(COMPLETION)[:-9], "not JSON, or was cut off"),
        (b"data: {}\n\n", "event stream"),
        (b"null", "the body is null, not an object"),
        ([COMPLETION], "the body is a list, not an object"),
        (b"7", "the body is a number, not an object"),
        ({}, "there are no choices"),
        ({"choices": []}, "choices is empty"),
        ({"choices": "many"}, "choices is text, not a list"),
        ({"choices": [None]}, "choices[0] is null, not an object"),
        ({"choices": [{"message": None}]}, "choices[0].message is null, not an object"),
        ({"choices": [{"text": "old"}]}, "choices[0].message is null, not an object"),
        ({"error": {"message": "the model is loading"}}, "the model is loading"),
        ({"message": "Unauthorized", "request_id": "r"}, "Unauthorized"),
        (b"[" * 200_000, "not JSON"),
        (b'{"a":' * 200_000, "not JSON"),
    ],
)
def test_a_200_without_a_completion_is_a_bad_response_that_says_why(body: Any, words: str) -> None:
    failure = failure_of(body)
    assert failure.kind is FailureKind.BAD_RESPONSE
    assert words in failure.message


@pytest.mark.parametrize(
    "wrong",
    [
        {"usage": "12 tokens"},
        {"usage": [1]},
        {"usage": {"prompt_tokens": "x", "prompt_tokens_details": "none"}},
        {"created": "yesterday"},
        {"created": True},
        {"id": 5},
        {"model": ["m"]},
        {"object": {}},
        {"\ud800": 1, "id": "\ud800", "choices": [{"message": MESSAGE | {"\udfff": 1, "role": "\ud800"}}]},
        {"choices": [{"message": MESSAGE, "index": "x", "finish_reason": 3}, "junk", {"message": None}]},
        {"choices": [{"message": MESSAGE | {"role": 7}}]},
    ],
)
def test_a_wrong_type_beside_the_answer_does_not_lose_it(wrong: dict[str, Any]) -> None:
    completion = answer_of(COMPLETION | wrong).completion
    assert [choice.message.content for choice in completion.choices] == ["hi"]
    assert completion.model_extra is not None and completion.model_extra["extra"] == {"kept": 1}


@pytest.mark.parametrize("content", ["\ud800 half a pair", "a\x00b", "é", "x" * 100_000])
def test_odd_text_in_an_answer_is_kept(content: str) -> None:
    body = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
    assert answer_of(body).completion.choices[0].message.content == content


def test_nan_a_byte_order_mark_raw_newlines_and_bad_utf8_do_not_lose_an_answer() -> None:
    body = b'\xef\xbb\xbf{"logprob": NaN, "choices": [{"message": {"content": "a\n\xff"}}]}'
    completion = answer_of(body).completion
    assert completion.choices[0].message.content == "a\n\ufffd"
    assert completion.model_extra is not None and math.isnan(completion.model_extra["logprob"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"message": "Unauthorized", "request_id": "r"}, "Unauthorized"),
        ({"error": {"message": "too long", "type": "t", "code": "c"}}, "too long"),
        ({"error": "just text"}, "just text"),
        ({"error": {"type": "overloaded_error"}}, "overloaded_error"),
        ({"detail": "Not Found"}, "Not Found"),
        (
            {"detail": [{"loc": ["body", "model"], "msg": "field required", "input": "my prompt"}]},
            "body.model: field required",
        ),
        ([{"error": {"message": "in a list"}}], "in a list"),
        (b'"text"', "text"),
        (b"12", "12"),
        (b"busy, come back\r\n\x1b[31m", "busy, come back [31m"),
        (b"\xff\xfe\xff", "\ufffd\ufffd\ufffd"),
        (b'{"message": "cut o', '{"message": "cut o'),
        (b"<html><head><title>502\n Bad &amp; Gateway</title>", 'an HTML page titled "502 Bad & Gateway"'),
        (b"<html>", "an HTML page"),
        (b"", "HTTP 503 (Service Unavailable), and no words with it"),
        ({}, "HTTP 503 (Service Unavailable), and no words with it"),
        ({"error": {"message": "\ud800\x00 lone"}}, "lone"),
    ],
)
def test_an_error_body_of_any_shape_gives_one_sane_sentence(body: Any, message: str) -> None:
    assert failure_of(body, 503).message == message


def test_a_long_message_is_cut_to_500_characters_and_the_body_to_64_kib() -> None:
    failure = failure_of({"message": "x" * 200_000}, 400)
    assert len(failure.message) == 500 and failure.message.endswith("…")
    assert failure.body is not None and len(failure.body) == 64 * 1024


def test_the_key_is_struck_from_words_body_and_request_id() -> None:
    long = "y" * 495 + " sk-secret"
    page = b"<html><title>sk-secret</title>"
    for body in ({"message": "bad key sk-secret"}, {"message": long}, b"sk-secret?", page):
        failure = failure_of(body, 401, "sk-secret", x_request_id="for sk-secret")
        assert "sk-s" not in failure.message and failure.request_id == "for ***"
        assert failure.body is not None and b"sk-s" not in failure.body


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, {"error": {"code": "insufficient_quota"}}, FailureKind.QUOTA),
        (429, {"error": {"type": "insufficient_quota"}}, FailureKind.QUOTA),
        (429, {"code": "insufficient_quota"}, FailureKind.QUOTA),
        (429, {"error": {"code": "rate_limit_exceeded"}}, FailureKind.RATE_LIMITED),
        (402, b"", FailureKind.QUOTA),
        (304, b"", FailureKind.REJECTED),
        (418, b"", FailureKind.REJECTED),
        (529, b"", FailureKind.SERVER_ERROR),
        (799, b"", FailureKind.SERVER_ERROR),
        (103, b"", FailureKind.BAD_RESPONSE),
    ],
)
def test_status_and_code_decide_the_kind(status: int, body: Any, kind: FailureKind) -> None:
    assert failure_of(body, status).kind is kind


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry_after": "12"}, 12.0),
        ({"retry_after": "0.5"}, 0.5),
        ({"retry_after": "0"}, 0.0),
        ({"retry_after_ms": "1500", "retry_after": "9"}, 1.5),
        ({"retry_after_ms": "soon", "retry_after": "9"}, 9.0),
        ({"retry_after": "Sun, 03 May 2026 10:18:42 GMT"}, 10.0),
        ({"retry_after": "Sat, 02 May 2026 10:18:42 GMT"}, None),
        ({"retry_after": "Mon, 03 May 2027 10:18:42 GMT"}, None),
        ({"retry_after": "Sun, 03 May 2026 03:00:10 GMT", "date": "Sun, 03 May 2026 03:00:00 GMT"}, 10.0),
        ({"retry_after": "Sun, 03 May 2026 10:18:42 GMT", "date": "now"}, 10.0),
        ({"retry_after_ms": "-1", "retry_after": "9"}, 9.0),
        ({"retry_after_ms": "1e12"}, None),
        ({"retry_after": "-3"}, None),
        ({"retry_after": "nan"}, None),
        ({"retry_after": "inf"}, None),
        ({"retry_after": "tomorrow"}, None),
        ({"retry_after": "Mon, 99 Foo 99999 99:99:99"}, None),
        ({"retry_after": "86400"}, 86_400.0),
        ({"retry_after": "86401"}, None),
        ({"retry_after": "999999999"}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert failure_of(b"", 429, **headers).retry_after_s == seconds


def test_should_retry_is_true_false_or_unsaid() -> None:
    said = [failure_of(b"", 500, x_should_retry=value).should_retry for value in ("true", "FALSE", "maybe")]
    assert said == [True, False, None]


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"data": 5}', b"<html>"])
def test_a_list_of_models_without_data_is_a_bad_response(body: bytes) -> None:
    failure = decide_models(200, {}, body, wall_now_s=NOW_S)
    assert isinstance(failure, Failure) and failure.kind is FailureKind.BAD_RESPONSE


@given(st.binary() | JSON.map(lambda data: json.dumps(data).encode()), st.integers(100, 999), st.text())
def test_no_body_and_no_header_ever_raises(body: bytes, status: int, value: str) -> None:
    names = ("retry-after", "retry-after-ms", "x-should-retry", "x-request-id", "location")
    verdict = decide_completion(status, dict.fromkeys(names, value), body, wall_now_s=NOW_S, secret="k")
    assert isinstance(verdict, Failure)
    assert 0 < len(verdict.message) <= 500
    assert not {unicodedata.category(character) for character in verdict.message} & {"Cc", "Cs"}


@settings(max_examples=50)
@given(st.text(st.characters()), st.dictionaries(st.text(), JSON, max_size=4))
def test_every_content_comes_back_as_it_was_sent(content: str, beside: dict[str, Any]) -> None:
    body = json.dumps(beside | {"choices": [{"message": {"content": content}}]}).encode()
    assert answer_of(body).completion.choices[0].message.content == content


def test_neither_credential_nor_error_shows_the_key_or_the_words() -> None:
    assert "sk-1" not in repr(Credential("sk-1", HeaderStyle.BEARER))
    error = error_for(Failure(FailureKind.QUOTA, "words of theirs", 429), latency_s=0.5, raw=b"raw words")
    assert isinstance(error, QuotaSpent) and str(error) == "quota (HTTP 429)"
    assert "words" not in repr(error)
    again = pickle.loads(pickle.dumps(error))
    assert (again.failure, again.latency_s, again.raw) == (error.failure, 0.5, b"raw words")


@pytest.mark.parametrize(
    "base_url",
    ["host.example", "ftp://host", "https://", "https://u:pw@host", "https://host?key=pw", "http://h:x"],
)
def test_a_base_url_that_cannot_be_one_is_refused_without_repeating_it(base_url: str) -> None:
    with pytest.raises(ValueError) as caught:
        EndpointConfig(base_url)
    assert "pw" not in str(caught.value)


def test_a_base_url_keeps_its_prefix() -> None:
    roots = {EndpointConfig(f"https://host/api{end}").api_root for end in ("", "/", "/v1", "/v1/")}
    assert roots == {"https://host/api/v1"}
