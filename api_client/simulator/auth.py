"""Checks the key of a request, and the header in which it is sent."""

from __future__ import annotations

from collections.abc import Mapping

from api_client.simulator.config import SimulatorConfig

_BEARER = b"bearer "


class Auth:
    """Checks credentials by a configuration's keys and header style."""

    def __init__(self, config: SimulatorConfig) -> None:
        self._asks_for_none = config.key is None
        self._revoked = _split(config.revoked_keys)
        self._spent = _split(config.spent_keys)
        self._accepted = (_split(config.key or "") | self._spent) - self._revoked
        self._takes_bearer = config.auth_header in ("both", "bearer")
        self._takes_api_key = config.auth_header in ("both", "api-key")

    def key_of(self, headers: Mapping[bytes, bytes]) -> bytes | None:
        """The key of an authorised request; None if it is not authorised.

        Without a configured key, every request is authorised but those with a revoked key: by the key that it sends, or
        the empty one.
        """
        presented = self.presented(headers)
        if self._asks_for_none:
            key = presented[0] if presented else b""
            return None if key in self._revoked else key
        return next((key for key in presented if key in self._accepted), None)

    def is_spent(self, key: bytes) -> bool:
        """Whether the account of an accepted key is empty."""
        return key in self._spent

    def presented(self, headers: Mapping[bytes, bytes]) -> list[bytes]:
        """The keys that the request sends, in the header styles that are taken."""
        presented = []
        authorization = headers.get(b"authorization", b"")
        if self._takes_bearer and authorization[: len(_BEARER)].lower() == _BEARER:
            presented.append(authorization[len(_BEARER) :].strip())
        if self._takes_api_key and b"api-key" in headers:
            presented.append(headers[b"api-key"].strip())
        return presented


def _split(keys: str) -> frozenset[bytes]:
    return frozenset(key.strip().encode() for key in keys.split(",") if key.strip())
