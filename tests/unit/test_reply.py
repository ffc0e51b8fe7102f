"""Answers of the writer that nobody waits for: the first word counts, whoever says it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.ledger import at_once
from worker.storage.reply import OnceAnswer


def result(answer: OnceAnswer[int]) -> None:
    answer.set_result(5)


def exception(answer: OnceAnswer[int]) -> None:
    answer.set_exception(KeyError("no"))


@pytest.mark.parametrize(("first", "heard"), [(result, "5"), (exception, "KeyError('no')")])
@pytest.mark.parametrize("later", [result, exception])
def test_the_first_word_is_heard_and_no_later_one(
    first: Callable[[OnceAnswer[int]], None], later: Callable[[OnceAnswer[int]], None], heard: str
) -> None:
    told: list[object] = []
    answer: OnceAnswer[int] = OnceAnswer(told.append, told.append)
    first(answer)
    later(answer)
    assert [repr(one) for one in told] == [heard]


def test_of_words_that_come_at_once_one_is_heard() -> None:
    """The writer says that a record is written while the way out says that nobody waits for it any more."""
    for _ in range(50):
        told: list[object] = []
        answer: OnceAnswer[int] = OnceAnswer(told.append, told.append)
        at_once(4, lambda i, answer=answer: (result if i % 2 else exception)(answer))  # type: ignore[misc]
        assert len(told) == 1


def test_what_goes_wrong_as_it_is_heard_is_raised() -> None:
    answer: OnceAnswer[list[int]] = OnceAnswer(lambda found: found[0], lambda _: None)
    with pytest.raises(IndexError):
        answer.set_result([])
