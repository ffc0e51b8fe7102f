"""Where the endpoint is, how long a call may take, and who is calling."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import urlsplit

from schemas.address import Address, parse_address

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """One endpoint and the limits of every call to it. Seconds and bytes.

    `base_url` means the same with or without `/v1` and with or without a trailing slash; see `schemas.address`.
    `deadline_s` bounds the whole call: name look-up, connect, TLS, and any drip of header or body bytes.
    `max_response_bytes` counts decoded bytes. `pool_size` connections are kept for reuse.
    Raises ValueError, which never repeats the URL's user or password.
    """

    base_url: str
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 300.0
    deadline_s: float = 360.0
    max_response_bytes: int = 32 * MIB
    pool_size: int = 16

    def __post_init__(self) -> None:
        for name in ("connect_timeout_s", "read_timeout_s", "deadline_s"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be a finite number of seconds above 0")
        if self.max_response_bytes < 1 or self.pool_size < 1:
            raise ValueError("max_response_bytes and pool_size must be at least 1")
        try:
            parse_address(self.base_url)
        except ValueError as exc:
            raise ValueError(f"base_url {exc}") from None

    @property
    def address(self) -> Address:
        """Where the calls go."""
        return parse_address(self.base_url)

    @property
    def api_root(self) -> str:
        """What `/chat/completions` and `/models` are added to, without a trailing slash and without a query."""
        return self.address.root

    @property
    def host_and_port(self) -> str:
        """`host:port` for people, with the scheme's own port where none was given."""
        parts = urlsplit(self.base_url.strip())
        port = parts.port if parts.port is not None else (443 if parts.scheme.lower() == "https" else 80)
        host = parts.hostname or ""
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class HeaderStyle(StrEnum):
    """Which header carries the key."""

    BEARER = "bearer"  # Authorization: Bearer <key>
    API_KEY = "api-key"  # api-key: <key>


@dataclass(frozen=True, slots=True)
class Credential:
    """The key and the header it travels in. The key is in no repr. None or blank: no header is sent."""

    key: str | None = field(default=None, repr=False)
    style: HeaderStyle = HeaderStyle.BEARER

    @property
    def secret(self) -> str | None:
        """The key without white space around it (a file's last newline), or None where nothing is left."""
        return (self.key or "").strip() or None
