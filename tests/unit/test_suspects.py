"""Suspects: one at a time has its turn, and the others are published anew when it ends."""

from __future__ import annotations

from worker.attempt.suspects import Suspects


def test_one_at_a_time_has_its_turn_and_the_others_come_later() -> None:
    suspects = Suspects()
    assert suspects.begin_turn("a")
    assert not suspects.begin_turn("c")
    assert not suspects.begin_turn("b")
    assert not suspects.begin_turn("b")
    assert suspects.end_turn() == ["b", "c"]
    assert suspects.begin_turn("b")
    assert suspects.end_turn() == []


def test_a_second_delivery_of_the_one_on_trial_is_not_published_again() -> None:
    suspects = Suspects()
    assert suspects.begin_turn("a")
    assert not suspects.begin_turn("a")
    assert suspects.end_turn() == []


def test_one_that_was_met_is_put_off_without_another_look() -> None:
    suspects = Suspects()
    assert not suspects.puts_off("a")
    assert suspects.begin_turn("a")
    assert suspects.puts_off("a")
    assert not suspects.puts_off("b"), "nobody knows that it is one"
    assert not suspects.begin_turn("b")
    assert suspects.puts_off("b")
    assert suspects.end_turn() == ["b"]
    assert not suspects.puts_off("b"), "it is nobody's turn"
    assert suspects.begin_turn("b")
    assert not suspects.puts_off("a"), "its turn is over: the ledger says what it is now"
