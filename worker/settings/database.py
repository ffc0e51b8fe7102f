"""The address of a PostgreSQL, as a value. Pure: storage makes an engine of it.

Its grammar is SQLAlchemy's, which users of Python know: `postgresql://user:password@host:port/database?parameters`,
with a driver's name behind the scheme or without. Storage speaks through psycopg, whatever the driver's name says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from urllib.parse import parse_qsl, quote, quote_plus, unquote

_SCHEMES = ("postgresql", "postgres")
_FORM = re.compile(
    r"""
    (?P<scheme>[\w+]+)://
    (?: (?P<user>[^:/]*) (?: : (?P<password>[^@]*) )? @ )?
    (?: \[ (?P<ipv6>[^/?]+) \] | (?P<host>[^/:?]+) )?
    (?: : (?P<port>[^/?]*) )?
    (?: / (?P<database>[^?]*) )?
    (?: \? (?P<query>.*) )?
    \s*
    """,
    re.VERBOSE,
)

# A parameter of libpq, or several of one name in their order: only `host` and `port` may stand there twice.
Parameter = str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PostgresqlAddress:
    """Where a PostgreSQL is. What is None is left to libpq and its variables (`PGHOST`, `PGUSER` and others)."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    host: str | None = None
    port: int | None = None
    database: str | None = None
    # By name. Not in a repr: libpq takes passwords here, too.
    parameters: Mapping[str, Parameter] = field(default_factory=lambda: MappingProxyType({}), repr=False)

    def with_parameters(self, changes: Mapping[str, Parameter]) -> PostgresqlAddress:
        """The address with these parameters in place of those of the same names."""
        return replace(self, parameters=MappingProxyType({**self.parameters, **changes}))

    def render(self) -> str:
        """The address as text, with its password in it. `parse_postgresql` makes an equal value of it."""
        return f"postgresql://{self._credentials()}{self._place()}{self._query()}"

    def _credentials(self) -> str:
        if self.user is None:
            return ""
        password = "" if self.password is None else f":{quote(self.password, safe=' +')}"
        return f"{quote(self.user, safe=' +')}{password}@"

    def _place(self) -> str:
        host = self.host or ""
        port = "" if self.port is None else f":{self.port}"
        database = "" if self.database is None else f"/{quote(self.database, safe=' +/')}"
        return f"{f'[{host}]' if ':' in host else host}{port}{database}"

    def _query(self) -> str:
        pairs = [
            f"{quote_plus(name)}={quote_plus(one)}"
            for name, value in sorted(self.parameters.items())
            for one in ((value,) if isinstance(value, str) else value)
        ]
        return f"?{'&'.join(pairs)}" if pairs else ""


def parse_postgresql(text: str) -> PostgresqlAddress:
    """The address in `text`. Raises ValueError with the rest of a sentence, which quotes nothing of it.

    A parameter without a value counts as left out.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError("is not a database address")
    try:
        port = None if found["port"] is None else int(found["port"])
    except ValueError:
        raise ValueError("is not a database address") from None
    if found["scheme"].partition("+")[0] not in _SCHEMES:
        raise ValueError("must begin with sqlite:/// or postgresql://")
    return PostgresqlAddress(
        user=_unquoted(found["user"]),
        password=_unquoted(found["password"]),
        host=found["host"] or found["ipv6"],
        port=port,
        database=_unquoted(found["database"]),
        parameters=_parse_parameters(found["query"] or ""),
    )


def _parse_parameters(query: str) -> Mapping[str, Parameter]:
    named: dict[str, list[str]] = {}
    for name, value in parse_qsl(query):
        named.setdefault(name, []).append(value)
    return MappingProxyType(
        {name: values[0] if len(values) == 1 else tuple(values) for name, values in named.items()}
    )


def _unquoted(text: str | None) -> str | None:
    return None if text is None else unquote(text)
