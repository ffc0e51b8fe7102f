"""What the address of a PostgreSQL may say, checked before anybody connects."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

from schemas.address import is_host

if TYPE_CHECKING:
    from sqlalchemy import URL

_NUMBERS = frozenset(
    {"connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"}
    | {"tcp_user_timeout"}
)
_ENCODINGS = frozenset({"utf8", "unicode"})  # a prompt may hold any character


def read_postgresql_url(url: URL) -> URL:
    """The address for our driver. Raises ValueError, which quotes a parameter's name at most."""
    # Local: ten megabytes that a process on SQLite does without.
    from psycopg.pq import Conninfo
    from sqlalchemy.exc import ArgumentError

    if "\0" in unquote(url.render_as_string(hide_password=False)):
        raise ValueError("must not hold U+0000, where libpq would stop to read")
    known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    for name, value in url.query.items():
        if name not in known:
            hint = "antrean sees itself whether a pooler is in between" if name == "pgbouncer" else ""
            raise ValueError(
                f"{_plain(name)} is no parameter of PostgreSQL's own client, libpq: leave it out"
                + (f" ({hint})" if hint else "; it has sslmode, options, connect_timeout and others")
            )
        if name in _NUMBERS and not (isinstance(value, str) and value.isascii() and value.isdecimal()):
            raise ValueError(f"{name} must be a whole number")
        if name not in ("host", "port") and not isinstance(value, str):
            raise ValueError(f"{name} stands there twice")
    encoding = url.query.get("client_encoding", "utf8")
    if str(encoding).lower().replace("-", "") not in _ENCODINGS:
        raise ValueError("client_encoding must be utf8: prompts and answers hold any character")
    if url.port is not None and not 0 < url.port < 65536:
        raise ValueError("its port must be a number of 1 to 65535")
    if url.host and not url.host.startswith("/") and not all(map(is_host, url.host.split(","))):
        raise ValueError("is not an address: its host is not readable")
    url = url.set(drivername="postgresql+psycopg")
    try:
        url.get_dialect()().create_connect_args(url)
    except ArgumentError:
        raise ValueError("its hosts and ports do not go together, or a port is no number") from None
    return url


def _plain(name: str) -> str:
    return name if name.isascii() and name.isprintable() and 0 < len(name) <= 40 else "what stands behind `?`"
