"""Who may ask Flower."""

from __future__ import annotations

from base64 import b64encode

import pytest

from worker.flower.guard import FREE_GUESSES, GUESS_EVERY_S, Guesses, is_right

CREDENTIALS = ["antrean:correct horse", "other:päss"]


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def header(credentials: str, scheme: str = "Basic", encoding: str = "utf-8") -> str:
    return f"{scheme} {b64encode(credentials.encode(encoding)).decode()}"


@pytest.mark.parametrize("credentials", CREDENTIALS)
@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC "])
def test_the_right_credentials_are_right(credentials: str, scheme: str) -> None:
    assert is_right(header(credentials, scheme), CREDENTIALS)


@pytest.mark.parametrize(
    "given",
    [
        "",
        "Basic",
        "Basic ",
        "Bearer x",
        "Basic %%%",
        "Basic ä",
        header("antrean:wrong"),
        header("antrean:pässwort"),
        header("antrean:pässwort", encoding="latin-1"),
        header("antrean:\x00"),
        header("antrean:correct horse ") + " x",
        header("antrean:correct horse", scheme="Digest"),
    ],
)
def test_anything_else_is_wrong_and_no_error(given: str) -> None:
    assert not is_right(given, CREDENTIALS)


def test_after_ten_wrong_passwords_an_address_waits_for_each_further_one() -> None:
    clock = Clock()
    guesses = Guesses(clock)
    for _ in range(FREE_GUESSES):
        assert guesses.wait_s("192.0.2.1") == 0
        guesses.count("192.0.2.1")
    assert guesses.wait_s("192.0.2.1") == pytest.approx(GUESS_EVERY_S)
    assert guesses.wait_s("192.0.2.2") == 0, "others do not wait with it"
    clock.now_s += GUESS_EVERY_S
    assert guesses.wait_s("192.0.2.1") == 0
    guesses.count("192.0.2.1")
    assert guesses.wait_s("192.0.2.1") == pytest.approx(GUESS_EVERY_S)
    clock.now_s += 3600
    for _ in range(FREE_GUESSES):
        assert guesses.wait_s("192.0.2.1") == 0
        guesses.count("192.0.2.1")


def test_the_addresses_of_one_ipv6_network_guess_together() -> None:
    guesses = Guesses(Clock())
    for i in range(FREE_GUESSES):
        guesses.count(f"2001:db8::{i:x}")
    assert guesses.wait_s("2001:db8::ffff") > 0
    assert guesses.wait_s("2001:db8:0:1::1") == 0


def test_many_guessers_take_bounded_memory_and_the_latest_are_kept() -> None:
    guesses = Guesses(Clock())
    for _ in range(FREE_GUESSES):
        guesses.count("a unix socket")
    for i in range(9_990):
        guesses.count(f"10.0.{i // 256}.{i % 256}")
    guesses.count("a unix socket")
    for i in range(5_000):
        guesses.count(f"10.1.{i // 256}.{i % 256}")
    assert len(guesses._spent_until) <= 10_000
    assert guesses.wait_s("a unix socket") > 0
