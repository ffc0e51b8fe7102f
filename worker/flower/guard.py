"""Access to Flower: limits wrong passwords, and accepts only this machine's names where no password is asked."""

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
GUESS_EVERY_S = 3.0  # after the free ones
_MOST_GUESSERS = 10_000


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches `address`. False for a name other than `localhost`: it may mean anything."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


class Guesses:
    """Limits wrong passwords by client address: ten at once, then one every three seconds.

    All clients behind one proxy or tunnel have one address, and share its limit. The 10,000 latest addresses are kept.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds that never go back."""
        self._clock = clock
        self._spent_until: dict[
            str, float
        ] = {}  # client to the time at which all its guesses are free again, least recent client first

    def wait_s(self, address: str) -> float:
        """Seconds until the next password of this address is checked; 0: it is checked now."""
        ahead_s = self._spent_until.get(_guesser(address), 0.0) - self._clock()
        return max(0.0, ahead_s - (FREE_GUESSES - 1) * GUESS_EVERY_S)

    def count(self, address: str) -> None:
        """Counts a wrong password of this address."""
        guesser, now = _guesser(address), self._clock()
        self._spent_until[guesser] = max(self._spent_until.pop(guesser, 0.0), now) + GUESS_EVERY_S
        if len(self._spent_until) > _MOST_GUESSERS:
            del self._spent_until[next(iter(self._spent_until))]


def _guesser(address: str) -> str:
    """The key under which an address is counted. An IPv6 client has a whole /64 network: that is one key."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address  # no IP address: a unix socket
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
    # As bytes: compare_digest accepts text only if it is ASCII.
    return any(hmac.compare_digest(given, one.encode()) for one in credentials)


class GuardedFlower(Flower):
    """Flower, which checks the Host header where it asks for no password."""

    guesses = Guesses()

    def find_handler(self, request: Any, **given: Any) -> Any:
        """The handler of a request; `Misdirected` for one with the host name of another site (DNS rebinding)."""
        is_open = not (self.options.basic_auth or self.options.auth)
        if is_open and not is_loopback(request.host_name.strip("[]")):
            return self.get_handler_delegate(request, Misdirected)
        return super().find_handler(request, **given)


class Misdirected(web.RequestHandler):
    """The answer to a request without password whose Host header is not a name of this machine."""

    def prepare(self) -> None:
        """Answers every method."""
        self.set_status(421)
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish(
            "This page asks for no password and is for this machine alone: go to 127.0.0.1 or localhost. "
            "A proxy in front of it sends `Host: 127.0.0.1`.\n"
        )


_flowers_own = BaseHandler.get_current_user


def get_current_user(handler: Any) -> Any:
    """As Flower's own. A wrong password is counted, logged, and answered with 401, whatever its bytes."""
    options, request = handler.application.options, handler.request
    if options.basic_auth:
        _check_password(request.headers.get("Authorization"), request.remote_ip, handler.application)
        if not options.auth:
            return True
    return _flowers_own(handler)


def _check_password(header: str | None, address: str, asked: GuardedFlower) -> None:
    if header is None:  # a browser's first request, which asks how to log in
        raise web.HTTPError(401)
    if asked.guesses.wait_s(address):
        raise web.HTTPError(429, "Too many wrong passwords from this address: wait.")
    if not is_right(header, asked.options.basic_auth):
        asked.guesses.count(address)
        wait_s = round(asked.guesses.wait_s(address), 1)
        log.warning("flower.login_refused", address=address, next_look_in_s=wait_s)
        raise web.HTTPError(401)
