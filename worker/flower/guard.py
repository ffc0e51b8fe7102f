"""Who may ask Flower: guesses at its password are slowed down, and an open page is for this machine's own addresses."""

from __future__ import annotations

import hmac
import ipaddress
import time
from base64 import b64decode
from collections.abc import Callable, Iterable
from typing import Any

import structlog
from flower.app import Flower
from flower.views import BaseHandler
from tornado import web

log = structlog.get_logger(__name__)

FREE_GUESSES = 10
GUESS_EVERY_S = 3.0  # after those
_MOST_GUESSERS = 10_000


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches `address`. A name other than `localhost` may be anything."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


class Guesses:
    """Wrong passwords by the address that they came from: ten at once, then one every three seconds.

    Everybody behind one proxy or tunnel has one address, and waits together. Kept for the 10,000 that guessed last.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds that never go back."""
        self._clock = clock
        self._spent_until: dict[
            str, float
        ] = {}  # when all guesses are free again, least recent guesser first

    def wait_s(self, address: str) -> float:
        """Seconds until another password of this address is looked at; 0 at once."""
        ahead_s = self._spent_until.get(_guesser(address), 0.0) - self._clock()
        return max(0.0, ahead_s - (FREE_GUESSES - 1) * GUESS_EVERY_S)

    def count(self, address: str) -> None:
        """A wrong one came."""
        guesser, now = _guesser(address), self._clock()
        self._spent_until[guesser] = max(self._spent_until.pop(guesser, 0.0), now) + GUESS_EVERY_S
        if len(self._spent_until) > _MOST_GUESSERS:
            del self._spent_until[next(iter(self._spent_until))]


def _guesser(address: str) -> str:
    """IPv6 hands out a network to everybody: its 2^64 addresses are one guesser."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address  # a unix socket has none
    return str(parsed) if parsed.version == 4 else str(ipaddress.ip_network((parsed, 64), strict=False))


def is_right(header: str, credentials: Iterable[str]) -> bool:
    """Whether an Authorization header carries one of `credentials`, each `user:password`. Never raises."""
    scheme, _, encoded = header.strip().partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        given = b64decode(encoded.strip(), validate=True)
    except ValueError:
        return False
    # As bytes: of text, compare_digest takes ASCII only.
    return any(hmac.compare_digest(given, one.encode()) for one in credentials)


class GuardedFlower(Flower):
    """Flower, which looks at the name that it is asked by where it asks for no password."""

    guesses = Guesses()

    def find_handler(self, request: Any, **given: Any) -> Any:
        """The handler of a request; `Misdirected` for one that another site's name led here (DNS rebinding)."""
        is_open = not (self.options.basic_auth or self.options.auth)
        if is_open and not is_loopback(request.host_name.strip("[]")):
            return self.get_handler_delegate(request, Misdirected)
        return super().find_handler(request, **given)


class Misdirected(web.RequestHandler):
    """The answer to a request that names an open page by a name that is not this machine's own."""

    def prepare(self) -> None:
        """Answers, whatever the method."""
        self.set_status(421)
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish(
            "This page asks for no password and is for this machine alone: go to 127.0.0.1 or localhost. "
            "A proxy in front of it sends `Host: 127.0.0.1`.\n"
        )


_flowers_own = BaseHandler.get_current_user


def get_current_user(handler: Any) -> Any:
    """Flower's own, but for a password: a wrong one is counted and logged, and a 401 whatever it is made of."""
    options, request = handler.application.options, handler.request
    if options.basic_auth:
        _check_password(request.headers.get("Authorization"), request.remote_ip, handler.application)
        if not options.auth:
            return True
    return _flowers_own(handler)


def _check_password(header: str | None, address: str, asked: GuardedFlower) -> None:
    if header is None:  # a browser that asks how to log in
        raise web.HTTPError(401)
    if asked.guesses.wait_s(address):
        raise web.HTTPError(429, "Too many wrong passwords from this address: wait.")
    if not is_right(header, asked.options.basic_auth):
        asked.guesses.count(address)
        wait_s = round(asked.guesses.wait_s(address), 1)
        log.warning("flower.login_refused", address=address, next_look_in_s=wait_s)
        raise web.HTTPError(401)
