"""The configuration of the client: the endpoint, the limits of a call, and the credential."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import urlsplit

from schemas.address import Address, parse_address

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """One endpoint, and the limits of each call to it. Seconds and bytes.

    `base_url` means the same with and without `/v1`, and with and without a trailing slash; see `schemas.address`.
    `deadline_s` limits the whole call: name look-up, connect, TLS, and answers that come byte by byte.
    `max_response_bytes` counts decoded bytes. At most `pool_size` connections are kept for reuse.
    Raises ValueError, whose text never has the URL's user or password.
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
        """The parsed address of the endpoint."""
        return parse_address(self.base_url)

    @property
    def api_root(self) -> str:
        """The URL to which `/chat/completions` and `/models` are added, without trailing slash and query."""
        return self.address.root

    @property
    def host_and_port(self) -> str:
        """`host:port` for people, with the scheme's default port if the URL has none."""
        parts = urlsplit(self.base_url.strip())
        port = parts.port if parts.port is not None else (443 if parts.scheme.lower() == "https" else 80)
        host = parts.hostname or ""
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class HeaderStyle(StrEnum):
    """The header in which the key is sent."""

    BEARER = "bearer"  # Authorization: Bearer <key>
    API_KEY = "api-key"  # api-key: <key>


@dataclass(frozen=True, slots=True)
class Credential:
    """The key and its header. The key is in no repr. A key that is None or blank: no header is sent.

    `key_id`: a name of the key that may be shown, and does not tell it.
    """

    key: str | None = field(default=None, repr=False)
    style: HeaderStyle = HeaderStyle.BEARER
    key_id: str = ""

    @property
    def secret(self) -> str | None:
        """The key without white space around it, such as a file's last newline; None if nothing is left."""
        return (self.key or "").strip() or None
