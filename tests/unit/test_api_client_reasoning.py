"""Answer and reasoning, apart."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_client.reasoning import Reasoned, split_reasoning
from schemas.completion import CompletionMessage

FREE_TEXT = st.text().filter(lambda text: "<" not in text)


def split(content: Any, **fields: Any) -> Reasoned:
    return split_reasoning(CompletionMessage(content=content, **fields))


@pytest.mark.parametrize(
    ("content", "answer", "reasoning", "is_unclosed"),
    [
        ("<think>why</think>\n\nanswer ", "answer ", "why", False),
        (" \n<think>why</think>answer", "answer", "why", False),
        ("plain", "plain", None, False),
        ("", "", None, False),
        (None, None, None, False),
        ("<think></think>answer", "answer", None, False),
        ("<think>why</think>", "", "why", False),
        ("<think>cut off by the limi", None, "cut off by the limi", True),
        ("<think>", None, None, True),
        ("the tag <think> is text</think>", "the tag <think> is text</think>", None, False),
        ("<think>a<think>b</think>c</think>d", "d", "a<think>b</think>c", False),
        ("<think>I write <think> now</think>d", "d", "I write <think> now", False),
        ("<think>a</think>then </think> again", "then </think> again", "a", False),
        ("swallowed tag</think>answer", "answer", "swallowed tag", False),
        (["<think>w</think>", {"type": "text", "text": "a"}, {"type": "image_url"}], "a", "w", False),
        ([{"type": "image_url"}], None, None, False),
        (5, None, None, False),
        ([{"type": "thinking", "thinking": "why"}, {"type": "text", "text": "\n a"}], "a", "why", False),
        (
            [
                {
                    "type": "thinking",
                    "thinking": [{"type": "text", "text": "wh"}, {"type": "text", "text": "y"}],
                },
                {"type": "text", "text": "a"},
            ],
            "a",
            "why",
            False,
        ),
        ([{"type": "reasoning", "text": "why"}, "a"], "a", "why", False),
        (
            [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "why"}]}, "a"],
            "a",
            "why",
            False,
        ),
        ([{"type": "reasoning.text", "reasoning": "why"}, {"text": "a"}], "a", "why", False),
        ([{"text": "why", "thought": True}, {"text": "a", "thought": False}], "a", "why", False),
        ([{"type": "redacted_thinking", "data": "xx"}, {"type": "text", "text": "a"}], "a", None, False),
        ([{"type": "text", "text": "a"}, {"type": "thinking", "thinking": "why"}], "a", "why", False),
        ([{"type": "thinking", "thinking": "cut"}], None, "cut", False),
        ([{"type": "thinking", "thinking": "cut", "closed": False}], None, "cut", True),
        ([{"type": "thinking", "thinking": "w"}, "<think>x</think>a"], "a", "w\n\nx", False),
        ({"type": "text", "text": "a"}, "a", None, False),
    ],
)
def test_the_reasoning_at_the_beginning_is_told_from_the_answer(
    content: Any, answer: str | None, reasoning: str | None, is_unclosed: bool
) -> None:
    assert split(content) == Reasoned(answer, reasoning, is_unclosed)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_a_field_of_its_own_wins(name: str) -> None:
    assert split("answer </think>", **{name: "field"}) == Reasoned("answer </think>", "field")
    assert split("<think>more</think>answer", **{name: "field"}) == Reasoned("answer", "field\n\nmore")
    assert split("<think>more", **{name: "field"}) == Reasoned(None, "field\n\nmore", is_unclosed=True)
    assert split(None, **{name: "field"}) == Reasoned(None, "field")
    assert split("<think>w</think>a", **{name: ""}) == Reasoned("a", "w")
    assert split("<think>w</think>a", **{name: {"not": "text"}}) == Reasoned("a", "w")


def test_the_same_thoughts_in_parts_and_in_a_field_are_told_once() -> None:
    parts = [{"type": "thinking", "thinking": "why"}, {"type": "text", "text": "a"}]
    assert split(parts, reasoning_content="why") == Reasoned("a", "why")
    assert split(parts, reasoning="first") == Reasoned("a", "first\n\nwhy")
    assert split("a", thinking="why") == Reasoned("a", "why")
    assert split("a", reasoning_content=[{"type": "text", "text": "why"}]) == Reasoned("a", "why")


@given(FREE_TEXT, FREE_TEXT)
def test_what_was_put_together_comes_apart(reasoning: str, answer: str) -> None:
    apart = split(f"<think>{reasoning}</think>{answer}")
    assert apart == Reasoned(answer.lstrip(), reasoning.strip() or None)


@given(st.text())
def test_no_text_is_lost_and_nothing_is_raised(content: str) -> None:
    apart = split(content)
    assert apart.answer is not None or apart.is_unclosed
    assert len(apart.answer or "") + len(apart.reasoning or "") <= len(content)


@given(st.lists(st.sampled_from(["<think>", "</think>", "a", " "])))
def test_any_mix_of_tags_is_split(parts: list[str]) -> None:
    content = "".join(parts)
    apart = split(content)
    assert apart.is_unclosed == (content.lstrip().startswith("<think>") and "</think>" not in content)
