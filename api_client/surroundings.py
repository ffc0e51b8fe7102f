"""What the environment says of the way to an endpoint: the proxy, and the certificates that are trusted.

requests reads both for every call, and reports a mistake in them in words of its own parts. Here they are read once,
and each mistake is a sentence with the variable's name. No sentence quotes a proxy's address: it may hold a password.
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
)  # the first that is set counts


@dataclass(frozen=True, slots=True)
class Surroundings:
    """As requests' adapter takes them: `verify` is True or the path of a bundle, `proxies` are by scheme."""

    verify: bool | str
    proxies: dict[str, str]


def read_surroundings(url: str) -> Surroundings:
    """The way to `url`. Raises ValueError with a sentence, which names the variable that is wrong."""
    with requests.Session() as session:
        settings = session.merge_environment_settings(url, {}, None, None, None)
    proxies = dict(settings["proxies"])
    proxy = select_proxy(url, proxies)
    if proxy:
        check_proxy(proxy, _proxy_variable(url))
    return Surroundings(_read_bundle(url, os.environ), proxies)


def check_proxy(proxy: str, variable: str) -> None:
    """Raises ValueError with a sentence unless `proxy` is one that calls can go through."""
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
        # With a certificate that cannot be read each call fails, as if the endpoint were away.
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except OSError as exc:  # an SSLError is one
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
