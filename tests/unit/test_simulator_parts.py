"""The simulator's pure parts."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from random import Random
from typing import Any

import pytest

from api_client.simulator import SimulatorConfig, count_tokens, expected_usage
from api_client.simulator.completion import compose_completion, compose_content
from api_client.simulator.faults import FaultDraw
from api_client.simulator.rate_window import RateWindow
from api_client.simulator.serve import tell_defect
from api_client.simulator.tokens import cut_tokens, text_of


def asked(*texts: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text} for text in texts]} | fields


def test_words_and_punctuation_marks_are_tokens_and_white_space_is_not() -> None:
    assert count_tokens("Halo, apa kabar?\n  Baik_2!") == 7
    assert count_tokens("") == 0


def test_a_text_is_cut_after_its_last_whole_token() -> None:
    assert cut_tokens("one two, three", 3) == "one two,"
    assert cut_tokens("one two, three", 4) is None


def test_content_in_parts_counts_by_its_text_parts() -> None:
    parts = [
        {"type": "text", "text": "Look:"},
        {"type": "image_url", "image_url": {}},
        {"type": "text", "text": "Hi"},
    ]
    assert text_of(parts) == "Look:\nHi"
    assert text_of(None) == ""
    assert expected_usage(asked(parts), "a b")["total_tokens"] == 5


def test_the_answer_keeps_the_opening_of_the_last_user_message() -> None:
    content = compose_content(asked("Ignored.", "First one. Second one? Third one."))
    assert content.endswith("</think>\n\nFirst one. Second one? (6 words)")


def test_a_message_without_text_still_gets_an_answer() -> None:
    assert compose_content(asked(None)).endswith("There is no text to summarise. (0 words)")


def test_the_newer_name_of_the_token_limit_wins() -> None:
    request = asked("Hello there", max_tokens=50, max_completion_tokens=2)
    completion = compose_completion(request, completion_id="resp-1", created=1)
    assert completion["usage"]["completion_tokens"] == 2


def test_a_limit_that_is_just_enough_cuts_nothing() -> None:
    whole = count_tokens(compose_content(asked("Hello")))
    completion = compose_completion(asked("Hello", max_tokens=whole), completion_id="resp-1", created=1)
    assert completion["choices"][0]["finish_reason"] == "stop"


def test_the_same_seed_draws_the_same_faults() -> None:
    config = SimulatorConfig(fault_rate=0.5, rate_hang=0.1)
    first, second = (FaultDraw(config, Random(3)) for _ in range(2))
    assert [first.draw() for _ in range(200)] == [second.draw() for _ in range(200)]


def test_faults_come_at_about_their_rates() -> None:
    faults = FaultDraw(SimulatorConfig(rate_500=0.25, rate_hang=0.5), Random(3))
    drawn = Counter(faults.draw() for _ in range(10_000))
    assert abs(drawn["500"] - 2500) < 200
    assert abs(drawn["hang"] - 5000) < 200
    assert abs(drawn[None] - 2500) < 200


def test_rates_that_add_up_to_one_leave_no_call_whole() -> None:
    faults = FaultDraw(SimulatorConfig(fault_rate=0.9, rate_hang=0.1), Random(3))
    assert all(faults.draw() for _ in range(10_000))


def test_the_window_slides_and_says_when_the_next_call_is_welcome() -> None:
    window = RateWindow()
    assert [window.admit(b"k", limit=2, now=now) for now in (0.0, 10.0)] == [0.0, 0.0]
    assert window.admit(b"k", limit=2, now=20.0) == 40.0
    assert window.admit(b"other", limit=2, now=20.0) == 0.0
    assert window.admit(b"k", limit=2, now=60.0) == 0.0
    assert window.admit(b"k", limit=2, now=61.0) == 9.0


def test_a_lowered_limit_waits_until_enough_calls_have_left_the_window() -> None:
    window = RateWindow()
    for now in (0.0, 1.0, 2.0):
        window.admit(b"k", limit=3, now=now)
    assert window.admit(b"k", limit=1, now=3.0) == 59.0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"port": 70_000}, "port must be a whole number, from 0 to 65535, not 70000"),
        ({"key": " "}, "key must not be empty"),
        ({"key": " ,"}, "key must not be empty"),
        ({"models": ()}, "models must name at least one model"),
        ({"latency_s": -1}, "latency_s must be at least 0, not -1"),
        ({"latency_s": float("nan")}, "latency_s must be a number, not nan"),
        ({"latency_jitter": 1.1}, "latency_jitter must be from 0 to 1, not 1.1"),
        ({"fault_rate": 0.6, "rate_hang": 0.6}, "fault rates add up to 1.2, and can be 1 at most"),
        ({"rpm": 0}, "rpm must be a whole number, at least 1, not 0"),
        ({"auth_header": "basic"}, "auth_header must be one of both, bearer, api-key"),
    ],
)
def test_a_senseless_option_is_refused_with_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SimulatorConfig(**options)


def test_the_key_is_not_in_the_text_of_the_configuration() -> None:
    assert "sk-secret" not in repr(SimulatorConfig(key="sk-secret"))


def test_a_defect_of_the_simulator_is_told_by_its_place_and_not_by_its_words(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def fail() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(tell_defect)
        loop.call_soon({}.__getitem__, "a prompt")
        loop.call_soon(json.loads, "a prompt, too")
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(fail())
    told = capsys.readouterr().err
    assert "KeyError at " in told and "JSONDecodeError at " in told and "decoder.py:" in told
    assert "prompt" not in told
