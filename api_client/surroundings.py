"""Reads the environment's settings for connections: the proxy, and the trusted certificates.

requests reads both for every call, and its errors do not name the variable. Here they are read once, and each error
names the variable. No message quotes a proxy's address, which may hold a password.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests
from requests.utils import select_proxy

_BUNDLES = (
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)  # the first one that is set counts


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The settings for requests' adapter. `verify`: True, or the path of a CA bundle. `proxies`: URLs by scheme."""

    verify: bool | str
    proxies: dict[str, str]


def read_surroundings(url: str) -> Surroundings:
    """The settings for calls to `url`. Raises ValueError with a sentence that names the wrong variable."""
    with requests.Session() as session:
        settings = session.merge_environment_settings(url, {}, None, None, None)
    proxies = dict(settings["proxies"])
    proxy = select_proxy(url, proxies)
    if proxy:
        check_proxy(proxy, _proxy_variable(url))
    return Surroundings(_read_bundle(url, os.environ), proxies)


def check_proxy(proxy: str, variable: str) -> None:
    """Raises ValueError with a sentence unless `proxy` is the address of an HTTP proxy."""
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port == 0:
        raise ValueError(
            f"the proxy that {variable} names is not an address: write http://HOST:PORT, or unset it"
        )
    if parts.scheme not in ("http", "https"):
        raise ValueError(
            f"{variable} names a {parts.scheme}:// proxy, and only http:// and https:// are spoken"
        )


def _read_bundle(url: str, environ: Mapping[str, str]) -> bool | str:
    variable = next((name for name in _BUNDLES if environ.get(name)), None)
    if variable is None:
        return True
    path = environ[variable]
    if not Path(path).exists():
        raise ValueError(f"the CA bundle that {variable} names does not exist: {path}")
    if url.startswith("https:") and not Path(path).is_dir():
        # If the certificates cannot be read, each call would fail as if the endpoint could not be reached.
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except OSError as exc:  # includes ssl.SSLError
            why = (
                "holds no certificates"
                if isinstance(exc, ssl.SSLError)
                else f"cannot be read ({exc.strerror})"
            )
            raise ValueError(f"the CA bundle that {variable} names {why}: {path}") from None
    return path


def _proxy_variable(url: str) -> str:
    names = (f"{urlsplit(url).scheme}_proxy", "all_proxy")
    spelt = (spelling for name in names for spelling in (name, name.upper()))
    return next((name for name in spelt if os.environ.get(name)), "the system")
