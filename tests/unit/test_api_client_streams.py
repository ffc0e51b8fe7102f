"""A whole answer that comes as an event stream is used; one that is cut off is not."""

from __future__ import annotations

import itertools
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_client.answers import Answer, decide_completion
from api_client.payload import switch_stream_off
from api_client.reasoning import split_reasoning
from schemas.failure import Failure, FailureKind, Spent


def chunk(delta: Any = None, finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta or {}, "finish_reason": finish}
    return {
        "id": "c1",
        "object": "chat.completion.chunk",
        "model": "m1",
        "created": 5,
        "choices": [choice],
        **more,
    }


CHUNKS = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "Hel"}, usage=None),
    chunk({"content": "lo"}),
    chunk({}, "stop"),
    {"id": "c1", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}},
]


def events(*chunks: Any, end: str = "\n", space: str = " ", done: bool = True) -> bytes:
    lines = [f"data:{space}{json.dumps(one)}{end}{end}" for one in chunks]
    return "".join([*lines, f"data:{space}[DONE]{end}{end}" if done else ""]).encode()


def decide(body: bytes) -> Answer | Failure:
    return decide_completion(200, {"content-type": "text/event-stream"}, body, wall_now_s=0.0)


def answer_of(body: bytes) -> Answer:
    answer = decide(body)
    assert isinstance(answer, Answer), answer
    return answer


def failure_of(body: bytes) -> Failure:
    failure = decide(body)
    assert isinstance(failure, Failure)
    return failure


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("space", ["", " "])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b": ping\n\n", b"event: message\nid: 7\nretry: 5\n"])
def test_chunks_are_put_together(end: str, space: str, start: bytes) -> None:
    answer = answer_of(start + events(*CHUNKS, end=end, space=space))
    completion = answer.completion
    assert (completion.id, completion.model, completion.object) == ("c1", "m1", "chat.completion")
    assert completion.choices[0].message.content == "Hello"
    assert completion.choices[0].message.role == "assistant"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None and completion.usage.total_tokens == 5
    assert orjson.loads(answer.raw)["choices"][0]["message"] == {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    "body",
    [
        events(*CHUNKS, done=False),
        events(*CHUNKS).rstrip(),
        events(*CHUNKS, done=False).rstrip(),
        events(*CHUNKS).replace(b"\n\n", b"\n"),
        events(*CHUNKS).replace(b"\n\n", b"\n\n: keep-alive\n\n"),
        events(*CHUNKS) + events(chunk({"content": "after the end"})),
        b"".join(b"data: " + line + b"\n" for line in json.dumps(CHUNKS[1], indent=1).encode().split(b"\n"))
        + b"\n"
        + events(*CHUNKS[2:]),
        events(*CHUNKS[1:]).replace(b"data: ", b"").replace(b"[DONE]", b"data: [DONE]"),
    ],
)
def test_a_stream_may_be_written_in_many_ways(body: bytes) -> None:
    assert answer_of(body).completion.choices[0].message.content == "Hello"


WHOLE = {"id": "w", "choices": [{"index": 0, "message": {"content": "whole"}, "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(WHOLE).encode() + b"\n\ndata: [DONE]\n\n",
        json.dumps(WHOLE).encode() + b"\ndata: [DONE]",
        json.dumps(WHOLE).encode() + b"\n[DONE]\n",
        json.dumps(WHOLE).encode() + b"[DONE]",
        events(WHOLE),
        events(WHOLE, done=False),
        events(chunk({"content": "who"}), WHOLE),
        json.dumps(WHOLE, indent=2).encode() + b"\ndata: [DONE]\n",
    ],
)
def test_a_whole_answer_with_an_end_of_stream_is_used(body: bytes) -> None:
    assert answer_of(body).completion.choices[0].message.content == "whole"


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_stream_that_is_cut_off_is_a_bad_response(at: int) -> None:
    for body in (events(*CHUNKS[:at], done=False), events(*CHUNKS[:at], done=False) + b'data: {"choi'):
        failure = failure_of(body)
        assert failure.kind is FailureKind.BAD_RESPONSE and "ended in the middle" in failure.message


def test_a_stream_with_one_of_two_choices_unfinished_is_cut_off() -> None:
    two = [chunk({"content": "a"}, "stop"), chunk({"content": "b"}, index=1)]
    assert failure_of(events(*two, done=False)).kind is FailureKind.BAD_RESPONSE
    finished = answer_of(events(*two, chunk({"content": "c"}, "length", index=1), done=False)).completion
    assert [one.message.content for one in finished.choices] == ["a", "bc"]
    assert [one.finish_reason for one in finished.choices] == ["stop", "length"]


@pytest.mark.parametrize(
    "error",
    [
        b'data: {"error": {"code": 429, "message": "slow"}}\n\n',
        b'event: error\ndata: {"code": 429, "message": "slow"}\n\n',
        b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "error", "error": {"code": 429}}]}\n\n',
        b'data: {"object": "error", "code": 429, "message": "slow"}\n\n',
    ],
)
def test_an_error_in_a_stream_is_a_failure_of_its_own_code(error: bytes) -> None:
    usage = events({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
    failure = failure_of(events(*CHUNKS[:2], done=False) + error + usage)
    assert failure.kind is FailureKind.RATE_LIMITED
    assert failure.spent is not None and failure.spent.total_tokens == 5


def test_an_error_event_of_plain_text_is_a_failure_with_its_words() -> None:
    failure = failure_of(events(*CHUNKS[:2], done=False) + b"event: error\ndata: the engine died\n\n")
    assert failure.kind is FailureKind.BAD_RESPONSE and "the engine died" in failure.message


def test_a_stream_that_is_cut_off_was_paid_for() -> None:
    body = events(chunk({"content": "a"}, usage={"prompt_tokens": 3, "completion_tokens": 1}), done=False)
    assert failure_of(body).spent == Spent("m1", 3, 1, 4)


@pytest.mark.parametrize(
    "body", [b"data: [DONE]\n\n", b"data: {}\n\n", b": ping\n\n", b"data: 5\n\ndata: [DONE]\n\n"]
)
def test_a_stream_without_an_answer_is_a_bad_response_that_says_so(body: bytes) -> None:
    failure = failure_of(body)
    assert failure.kind is FailureKind.BAD_RESPONSE


def call(index: int | None, id_: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {
        "tool_calls": [{"index": index, "id": id_, "type": "function" if id_ else None, "function": function}]
    }


@pytest.mark.parametrize(
    "indexes",
    [(0, 1), (0, 0), (None, None)],
)
def test_tool_calls_are_put_together(indexes: tuple[int | None, int | None]) -> None:
    first, second = indexes
    deltas = [
        call(first, "a", "add", ""),
        call(first, None, None, '{"x"'),
        call(first, None, "", ": 1}"),
        call(second, "b", "sub", '{"y"'),
        call(second, None, None, ": 2}"),
    ]
    message = answer_of(events(*map(chunk, deltas), chunk({}, "tool_calls"))).completion.choices[0].message
    assert message.content is None and message.tool_calls == [
        {"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}},
        {"id": "b", "type": "function", "function": {"name": "sub", "arguments": '{"y": 2}'}},
    ]


def test_reasoning_refusal_and_log_probabilities_are_put_together() -> None:
    one = chunk({"reasoning_content": "Let me ", "refusal": "No"})
    two = chunk({"reasoning_content": "see.", "refusal": "!"})
    one["choices"][0]["logprobs"] = {"content": [1]}
    two["choices"][0]["logprobs"] = {"content": [2]}
    answer = answer_of(events(one, two, chunk({"content": "4"}, "stop")))
    message = answer.completion.choices[0].message
    assert (split_reasoning(message).answer, split_reasoning(message).reasoning) == ("4", "Let me see.")
    assert message.refusal == "No!"
    assert orjson.loads(answer.raw)["choices"][0]["logprobs"] == {"content": [1, 2]}


def test_thinking_parts_in_a_stream_are_reasoning() -> None:
    def thinking(text: str) -> dict[str, Any]:
        return {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": text}]}]}

    deltas = [thinking("two and "), thinking("two"), {"content": "4"}, {"content": "!"}]
    message = answer_of(events(*map(chunk, deltas), chunk({}, "stop"))).completion.choices[0].message
    assert (split_reasoning(message).answer, split_reasoning(message).reasoning) == ("4!", "two and two")


@given(
    st.text(st.characters()), st.lists(st.integers(0, 60), max_size=5), st.sampled_from(["\n", "\r\n", "\r"])
)
def test_any_text_comes_back_as_it_was_cut_into_chunks(text: str, cuts: list[int], end: str) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [chunk({"content": text[a:b]}) for a, b in itertools.pairwise(places)]
    answer = answer_of(events(*pieces, chunk({}, "stop"), end=end))
    assert answer.completion.choices[0].message.content == text


@given(
    st.binary()
    | st.lists(st.sampled_from([b"data:", b"[DONE]", b"{", b"}", b"\n", b"\n\n", b'{"choices":[', b"]"]))
)
def test_no_stream_ever_raises(body: bytes | list[bytes]) -> None:
    decide(b"data: " + (body if isinstance(body, bytes) else b"".join(body)))


def test_a_stream_of_many_chunks_costs_time_in_proportion() -> None:
    body = events(*[chunk({"content": "word "})] * 20_000, chunk({}, "stop"))
    assert len(answer_of(body).completion.choices[0].message.content) == 100_000


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        ({"model": "m"}, {"stream": False, "model": "m"}),
        ({"model": "m", "stream": None}, {"stream": False, "model": "m"}),
        ({"model": "m", "stream": False}, {"stream": False, "model": "m"}),
        ({"model": "m", "stream": False, "stream_options": {}}, {"stream": False, "model": "m"}),
        ({"model": "m", "stream_options": {"include_usage": True}}, {"stream": False, "model": "m"}),
        ({"model": 'say "stream": true'}, {"stream": False, "model": 'say "stream": true'}),
        ({"m": {"stream": True}}, {"stream": False, "m": {"stream": True}}),
        ({"model": "\x1b\\"}, {"stream": False, "model": "\x1b\\"}),
        ({}, {"stream": False}),
    ],
)
def test_a_request_says_that_it_does_not_stream_and_says_it_once(
    body: dict[str, Any], sent: dict[str, Any]
) -> None:
    for written in (orjson.dumps(body), json.dumps(body, indent=1).encode()):
        pairs: list[tuple[str, Any]] = json.loads(switch_stream_off(written), object_pairs_hook=list)
        assert [name for name, _ in pairs].count("stream") == 1
        assert orjson.loads(switch_stream_off(written)) == sent


def test_a_key_that_is_written_in_escapes_is_not_doubled() -> None:
    assert switch_stream_off(b'{"\\u0073tream": null}') == b'{"stream":false}'


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b'{"a": "\\ud800"}'])
def test_what_is_no_plain_json_object_is_left_as_it_is(body: bytes) -> None:
    assert switch_stream_off(body) == body


@pytest.mark.parametrize(
    "first",
    [
        {"tool_calls": "none yet"},
        {"tool_calls": ["odd"]},
        {"tool_calls": [{"index": 0, "function": "f"}]},
        {"function_call": "f"},
    ],
)
def test_a_field_that_changes_its_type_in_a_stream_costs_no_answer(first: dict[str, Any]) -> None:
    name = next(iter(first))
    function = {"name": "f", "arguments": "{}"}
    then = {name: function} if name == "function_call" else {name: [{"index": 0, "function": function}]}
    answer = answer_of(events(chunk({"content": "hi"}), chunk(first), chunk(then), chunk({}, "stop")))
    assert answer.completion.choices[0].message.content == "hi"


def test_log_probabilities_that_change_their_type_cost_no_answer() -> None:
    odd = chunk({"content": "hi"})
    odd["choices"][0]["logprobs"] = []
    then = chunk({})
    then["choices"][0]["logprobs"] = {"content": [{"token": "hi"}]}
    answer = answer_of(events(odd, then, chunk({}, "stop")))
    assert answer.completion.choices[0].message.content == "hi"
