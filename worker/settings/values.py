"""Values of settings, checked: paths, and the addresses of broker and database. Each raises ValueError with a sentence.

A relative path is below the current folder of the process that was given it. Workers have a folder of their own, so
every path is made absolute here, also one inside an address.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from pydantic import AfterValidator

from schemas.address import is_host, parse_address
from schemas.sqlite_address import is_sqlite_address

_BROKER_SCHEMES = ("redis", "rediss", "redis+socket")
_BROKER_FILES = frozenset({"ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"})
DATABASE_FILES = frozenset(
    {"sslrootcert", "sslcert", "sslkey", "sslcrl", "sslcrldir", "passfile", "servicefile"}
)
# Of the machine, or of all its users: programs of the system keep folders there that have the names of a home's.
_SYSTEM_FOLDERS = frozenset(
    {
        "/",
        "/bin",
        "/boot",
        "/dev",
        "/etc",
        "/home",
        "/lib",
        "/lib64",
        "/proc",
        "/run",
        "/sbin",
        "/sys",
        "/tmp",
    }
    | {"/usr", "/usr/bin", "/usr/lib", "/usr/lib64", "/usr/local", "/usr/sbin"}
    | {"/var", "/var/lib", "/var/log", "/var/run", "/var/tmp"}
    | {
        "/Applications",
        "/Library",
        "/System",
        "/Users",
        "/Volumes",
        "/private",
        "/private/etc",
        "/private/tmp",
    }
    | {"/private/var"}
)
_NO_FILES = frozenset({"system"})  # sslrootcert=system

# An endpoint's address, as `parse_address` writes it.
BaseUrl = Annotated[str, AfterValidator(lambda value: parse_address(value).base_url)]


def holds_path(name: str, value: object) -> bool:
    """Whether a setting of this name and value says where a file is: then it is a FileName, not text."""
    text = str(value)
    return name.endswith(("_file", "home")) or is_sqlite_address(text) or text.startswith("redis+socket:")


def check_text(value: object) -> None:
    """Text that has a form in UTF-8: bytes of another encoding come as lone surrogates, which nothing can store."""
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= one <= "\udfff" for one in value):
        raise ValueError("is not UTF-8 text")


def shown(path: Path) -> str:
    """A path as a sentence can quote it, whatever bytes it is made of."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def expanded_path(path: Path) -> Path:
    """`path` seen from the current folder, where `~` at its beginning is the home folder of a user.

    Where no user has the name behind `~`, the path stays as it is, as in a shell; `Path.expanduser` would raise.
    """
    return absolute_path(Path(os.path.expanduser(path)))  # noqa: PTH111


def check_home(path: Path) -> Path:
    """The home folder, absolute. Raises ValueError for one that is the system's: what is in a home is closed to others.

    Follows links, and reads nothing.
    """
    if any(os.path.normpath(one) in _SYSTEM_FOLDERS for one in (path, os.path.realpath(path))):
        raise ValueError(f"{shown(path)} is a folder of the system: choose one of your own")
    return path


def absolute_path(path: Path) -> Path:
    """`path` seen from the current folder."""
    if "\0" in str(path):
        raise ValueError("must not hold U+0000")
    try:
        return Path(os.path.abspath(path))
    except OSError:
        raise ValueError(
            "is relative to the current folder, which is gone: change to one that exists"
        ) from None


def absolute_file(value: str) -> str:
    """A path in an address or a variable of another program, made absolute."""
    return value if not value or value in _NO_FILES else str(absolute_path(Path(value)))


def check_broker_url(url: str) -> str:
    """The broker's address as kombu and redis-py both read it, its files absolute."""
    if url.partition("://")[0] not in _BROKER_SCHEMES:
        raise ValueError(
            "must begin with redis://, rediss:// or redis+socket:// (Valkey answers to redis://; "
            "Sentinels are not asked: name the server, or a proxy that follows them)"
        )
    if any(ord(character) <= 32 for character in url):
        raise ValueError("must not hold spaces or line breaks")
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise ValueError(
            "is not an address: a port is a number from 0 to 65535, a host is a name or in [ ]"
        ) from None
    if host and not is_host(host):
        raise ValueError("is not an address: its host is not readable")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme == "redis+socket":
        if host or port is not None or not parts.path.strip("/"):
            raise ValueError(
                "names a socket by its whole path, after three slashes: redis+socket:///run/valkey.sock"
            )
        database = options.get("virtual_host", "0").lstrip("/")
    else:
        database = unquote(parts.path).strip("/")
    if database and not (database.isascii() and database.isdigit()):
        where = "?virtual_host=0" if parts.scheme == "redis+socket" else "redis://HOST:PORT/0"
        raise ValueError(f"names a database that is not a number ({where} is the first)")
    return _with_absolute_files(url)


def _with_absolute_files(url: str) -> str:
    address, _, query = url.partition("?")
    options = parse_qsl(query, keep_blank_values=True)
    if not any(name in _BROKER_FILES for name, _ in options):
        return url
    absolute = [(name, absolute_file(value) if name in _BROKER_FILES else value) for name, value in options]
    return f"{address}?{urlencode(absolute)}"
