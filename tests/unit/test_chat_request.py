"""The chat request: what is let in, what is named, and what is sent."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.chat import (
    InvalidRequest,
    check_request,
    encode_decoded,
    encode_request,
    fill_model,
    hash_request,
    parse_request,
)

HELLO = [{"role": "user", "content": "Hello"}]


def request(**facts: Any) -> dict[str, Any]:
    return {"model": "m", "messages": HELLO} | facts


def problems(data: Any, **how: Any) -> list[str]:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(data, **how)
    return caught.value.errors


def test_what_was_given_is_sent_and_nothing_else() -> None:
    data = request(
        temperature=0.7, top_p=0.5, user=None, tools=[{"type": "function", "function": {"name": "f"}}]
    )
    assert orjson.loads(encode_request(parse_request(data))) == data


def test_fields_that_nobody_knows_travel_inside_messages_too() -> None:
    data = request(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}])
    assert orjson.loads(encode_request(parse_request(data))) == data


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_something_else_than_an_object_is_named(data: Any) -> None:
    assert problems(data) == ["must be a JSON object"]


def test_every_problem_is_named_at_once_with_its_field() -> None:
    found = problems({"messages": [{"role": "nobody", "content": "x"}], "temperature": -1, "stream": True})
    assert [problem.split(":")[0] for problem in found] == [
        "model",
        "messages[0].role",
        "temperature",
        "stream",
    ]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user"},
        {"role": "user", "content": 5},
        {"role": "user", "content": []},
        {"role": "user", "content": [{"type": "text"}]},
        {"role": "assistant"},
        {"role": "tool", "content": "x"},
    ],
)
def test_a_message_without_what_its_role_needs_is_named(message: dict[str, Any]) -> None:
    assert problems(request(messages=[message]))[0].startswith("messages[0]")


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "assistant", "content": ""},
        {"role": "tool", "content": "x", "tool_call_id": "1"},
        {"role": "developer", "content": "x"},
    ],
)
def test_a_message_with_what_its_role_needs_is_let_in(message: dict[str, Any]) -> None:
    parse_request(request(messages=[message]))


@pytest.mark.parametrize("value", [0, 0.0, -0.1, float("nan"), float("inf"), True, "1", [1]])
def test_a_temperature_that_makes_no_sense_is_named(value: Any) -> None:
    assert problems(request(temperature=value))[0].startswith("temperature: ")


def test_a_temperature_of_zero_is_let_in_where_it_is_allowed() -> None:
    assert parse_request(request(temperature=0), allow_zero_temperature=True).temperature == 0
    assert parse_request(request(temperature=None)).temperature is None
    assert encode_request(parse_request(request(temperature=1))).count('"temperature":1') == 1


@pytest.mark.parametrize("value", [True, 1, "false"])
def test_a_stream_is_refused(value: Any) -> None:
    assert "stream" in problems(request(stream=value))[0]
    parse_request(request(stream=False))


def test_an_absent_model_is_filled_in_and_a_given_one_is_kept() -> None:
    assert parse_request({"messages": HELLO}, default_model="d").model == "d"
    assert parse_request({"messages": HELLO, "model": None}, default_model="d").model == "d"
    assert parse_request(request(), default_model="d").model == "m"
    assert problems(request(model=""), default_model="d")[0].startswith("model")


@pytest.mark.parametrize("odd", ["a\ud800b", 2**70, {1, 2}])
def test_what_json_cannot_hold_is_a_problem_of_the_request(odd: Any) -> None:
    with pytest.raises(InvalidRequest, match="JSON"):
        encode_request(parse_request(request(user=odd)))


def test_the_problem_quotes_no_prompt() -> None:
    found = problems(request(messages=[{"role": "user", "content": {"secret": "prompt"}}], temperature=-1))
    assert "secret" not in " ".join(found)


def test_the_same_request_has_the_same_hash_in_any_order_of_its_keys() -> None:
    one = encode_request(parse_request({"n": 1, "user": "u", "model": "m", "messages": HELLO}))
    two = encode_request(parse_request({"user": "u", "messages": HELLO, "model": "m", "n": 1}))
    assert one != two
    assert hash_request(one) == hash_request(two)
    assert hash_request(one) != hash_request(encode_request(parse_request(request(n=2))))


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_the_way(content: str) -> None:
    body = encode_request(parse_request(request(messages=[{"role": "user", "content": content}])))
    assert json.loads(body)["messages"][0]["content"] == content
    assert "\x00" not in body


def verdict(check: Any, data: Any, allow_zero: bool) -> list[str] | None:
    try:
        check(data, allow_zero_temperature=allow_zero)
    except InvalidRequest as exc:
        return exc.errors
    return None


def changed(sound: st.SearchStrategy[Any], **values: list[Any]) -> st.SearchStrategy[Any]:
    """A sound object in which at most one field is something else."""
    fields = st.sampled_from([(name, value) for name, some in values.items() for value in some])
    return st.builds(lambda good, change: {**good, **dict(change)}, sound, st.lists(fields, max_size=1))


ODD = [None, True, False, 0, 1, -1, 0.5, "", "x", [], {}, ["x"], [[]], [{}], [{"id": "1"}], {"a": None}]
PARTS = [{"type": "text", "text": "t", "x": 1}]
MESSAGES = changed(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "system", "assistant", "developer", "function"]),
            "content": st.sampled_from(["", "x", "Halo", "\0", PARTS]),
        }
    ),
    role=["tool", "nobody", *ODD],
    content=ODD,
    name=ODD,
    tool_calls=ODD,
    tool_call_id=ODD,
    refusal=ODD,
)
REQUESTS = changed(
    st.fixed_dictionaries(
        {"messages": st.lists(MESSAGES, min_size=1, max_size=2)},
        optional={
            "model": st.just("m"),
            "temperature": st.sampled_from([0.7, 1, None, 0, 0.0]),
            "stream": st.sampled_from([False, None]),
            "seed": st.sampled_from(ODD),
        },
    ),
    messages=ODD,
    model=ODD,
    temperature=[-0.0, 1e400, float("nan"), *ODD],
    stream=ODD,
)


@settings(max_examples=500)
@given(REQUESTS, st.booleans(), st.sampled_from([None, "d"]))
def test_the_short_check_and_the_models_say_the_same_and_send_the_same(
    data: dict[str, Any], allow_zero: bool, default_model: str | None
) -> None:
    data = dict(fill_model(data, default_model))
    found = verdict(check_request, data, allow_zero)
    assert found == verdict(parse_request, data, allow_zero)
    if found is None:
        body, hashed = encode_decoded(data)
        modelled = encode_request(parse_request(data, allow_zero_temperature=allow_zero))
        assert orjson.loads(body) == orjson.loads(modelled)
        assert hashed == hash_request(body) == hash_request(modelled)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": True},
        {"temperature": 0},
        {"temperature": float("inf")},
        {"temperature": "1"},
        {"stream": 0},
        {"stream": True},
        {"model": ""},
        {"model": 1},
        {"messages": []},
        {"messages": [[]]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": [], "content": "x"}]},
        {"messages": [{"role": "assistant", "content": None}]},
        {"messages": [{"role": "user", "content": "x", "name": 1}]},
        {"messages": [{"role": "user", "content": "x", "tool_calls": 1}]},
        {"messages": [{"role": "user", "content": "x", "tool_call_id": 1}]},
        {"messages": [*HELLO, {"role": "user", "content": 1}]},
    ],
)
def test_the_short_check_lets_nothing_wrong_through(change: dict[str, Any]) -> None:
    found = verdict(check_request, request(**change), False)
    assert found is not None
    assert found == problems(request(**change))
