"""What the address of a PostgreSQL may say, checked before it is connected to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from schemas.address import is_host
from worker.settings.database import Parameter, PostgresqlAddress

_NUMBERS = frozenset(
    {"connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"}
    | {"tcp_user_timeout"}
)
_ENCODINGS = frozenset({"utf8", "unicode"})  # a prompt may hold any character


def check_postgresql(address: PostgresqlAddress) -> None:
    """Raises ValueError where libpq could not use the address; its words quote a parameter's name at most."""
    # Local: ten megabytes that a process on SQLite does without.
    from psycopg.pq import Conninfo

    if any("\0" in text for text in _texts(address)):
        raise ValueError("must not hold U+0000, because libpq stops reading there")
    known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    for name, value in address.parameters.items():
        if name not in known:
            hint = "antrean finds out by itself whether there is a pooler" if name == "pgbouncer" else ""
            raise ValueError(
                f"{_plain(name)} is no parameter of PostgreSQL's own client, libpq: leave it out"
                + (f" ({hint})" if hint else "; it has sslmode, options, connect_timeout and others")
            )
        if name in _NUMBERS and not (isinstance(value, str) and value.isascii() and value.isdecimal()):
            raise ValueError(f"{name} must be a whole number")
        if name not in ("host", "port") and not isinstance(value, str):
            raise ValueError(f"{name} is given twice")
    encoding = address.parameters.get("client_encoding", "utf8")
    if str(encoding).lower().replace("-", "") not in _ENCODINGS:
        raise ValueError("client_encoding must be utf8: prompts and answers hold any character")
    if address.port is not None and not 0 < address.port < 65536:
        raise ValueError("its port must be a number of 1 to 65535")
    host = address.host
    if host and not host.startswith("/") and not all(map(is_host, host.split(","))):
        raise ValueError("is not an address: its host is not readable")
    if not _do_hosts_and_ports_fit(address.parameters):
        raise ValueError("its hosts and ports do not go together, or a port is no number")


def _do_hosts_and_ports_fit(parameters: Mapping[str, Parameter]) -> bool:
    """Whether `host` and `port` of the query can be told apart: `host=a,b&port=1,2`, or `host=a:1&host=b:2`."""
    hosts, ports = parameters.get("host"), parameters.get("port")
    if isinstance(hosts, tuple):
        pairs = [host.split(":") for host in hosts]
        return ports is None and all(len(pair) < 3 and _is_port("".join(pair[1:])) for pair in pairs)
    if ports is None:
        return True
    numbers = ports.split(",") if isinstance(ports, str) else ports
    host_count = 1 if hosts is None else len(hosts.split(","))
    return all(map(_is_port, numbers)) and len(numbers) == host_count


def _is_port(text: str) -> bool:
    if not text:
        return True  # libpq's own
    try:
        int(text)
    except ValueError:
        return False
    return True


def _texts(address: PostgresqlAddress) -> Iterator[str]:
    yield from (one for one in (address.user, address.password, address.host, address.database) if one)
    for name, value in address.parameters.items():
        yield name
        yield from (value,) if isinstance(value, str) else value


def _plain(name: str) -> str:
    return name if name.isascii() and name.isprintable() and 0 < len(name) <= 40 else "what stands behind `?`"
