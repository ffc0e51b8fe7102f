"""Secrets among the settings: passwords from files, and a key that fits a header. No sentence here quotes one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from pydantic import AfterValidator, SecretStr

from worker.settings.values import expanded_path, shown


def read_password(file: Path) -> str:
    """The password in `file`, without the white space around it. Raises ValueError with a sentence."""
    try:
        password = file.read_text(encoding="utf-8").strip()
    except OSError as exc:
        raise ValueError(f"its password file {shown(file)} cannot be read ({exc.strerror})") from None
    except UnicodeError:
        raise ValueError(f"its password file {shown(file)} holds no text") from None
    if not password:
        raise ValueError(f"its password file {shown(file)} is empty")
    return password


def fill_in_password(url: str, password: str) -> str:
    """`url` with `password` in place of any of its own."""
    scheme, separator, rest = url.partition("://")
    end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    credentials, _, host = rest[:end].rpartition("@")
    user = credentials.partition(":")[0]
    return f"{scheme}{separator}{user}:{quote(password, safe='')}@{host}{rest[end:]}"


def read_command(line: str) -> str:
    """A command line, its program made absolute where it is named by a path. Raises ValueError with a sentence.

    The sentence does not quote the line: its words may be secrets.
    """
    try:
        words = shlex.split(line)
    except ValueError:
        raise ValueError("is no command line: a quote or a backslash at its end has no partner") from None
    if not words or not words[0]:
        raise ValueError("names no program")
    if "/" in words[0]:
        words[0] = str(expanded_path(Path(words[0])))
    return shlex.join(words)


def split_keys(text: str, separator: str) -> list[str]:
    """The keys in `text`, each once and without the white space around it; empty parts are left out.

    Raises ValueError, without a key in it, if there is none, or one cannot travel in an HTTP header.
    """
    keys = list(dict.fromkeys(part.strip() for part in text.split(separator) if part.strip()))
    if not keys:
        raise ValueError("holds no key")
    for number, key in enumerate(keys, 1):
        try:
            check_api_key(key)
        except ValueError as exc:
            raise ValueError(str(exc) if len(keys) == 1 else f"(key {number} of {len(keys)}) {exc}") from None
    return keys


def check_api_key(key: str) -> None:
    """Raises ValueError, without the key in it, if `key` cannot travel in an HTTP header."""
    if not key.isascii() or not key.isprintable() or " " in key or not key:
        raise ValueError(
            "must be printable ASCII without spaces (was a quote or a line break pasted with it?)"
        )


def _check_key(value: SecretStr) -> SecretStr:
    check_api_key(value.get_secret_value())
    return value


def _read_key_command(value: SecretStr) -> SecretStr:
    return SecretStr(read_command(value.get_secret_value()))


ApiKey = Annotated[SecretStr, AfterValidator(_check_key)]
KeyCommand = Annotated[SecretStr, AfterValidator(_read_key_command)]
