"""The address of an endpoint: the URLs of its calls, and the name under which its jobs are filed. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address
from urllib.parse import SplitResult, parse_qsl, urlsplit

CHAT_PATH = "/chat/completions"
MODELS_PATH = "/models"

# v1, v2, v1beta, v1alpha1, v1p1beta1, v1.1, v1-openai
_VERSION = re.compile(
    r"v\d+(?:[.p]\d+)*(?:[-_.]?(?:alpha|beta|preview|rc|exp|dev|openai)\d*)?", re.IGNORECASE
)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,62})", re.IGNORECASE)
_VERSIONS_IN_QUERY = frozenset({"api-version", "api_version", "apiversion"})
_SECRETS_IN_QUERY = re.compile(
    r"(?:x[-_])?(?:api|access|auth|subscription)?[-_.]?"
    r"(?:key|token|secret|password|passwd|sig|signature|code|authorization)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Address:
    """The address of an endpoint.

    A call's URL is `root`, then `/chat/completions` or `/models`, then `?` and `query` if there is one. `base_url`: the
    shortest form of the same address. `name`: the default name under which jobs are filed.
    """

    root: str
    query: str
    base_url: str
    name: str

    @property
    def chat_url(self) -> str:
        """The URL for completions."""
        return self.at(CHAT_PATH)

    @property
    def models_url(self) -> str:
        """The URL for the list of models."""
        return self.at(MODELS_PATH)

    def at(self, path: str) -> str:
        """The URL for a path of the API."""
        return f"{self.root}{path}{self.query and '?'}{self.query}"


@lru_cache(maxsize=64)
def parse_address(base_url: str) -> Address:
    """The address that a base URL means.

    `/v1` is added unless the URL has a version at its end (`/api/v3`, `/v1beta/openai`) or in its query
    (`?api-version=…`), or has a form without versions (Azure's `/openai/deployments/NAME`). Of a URL that ends in
    `/chat/completions`, the part before that is the root, unchanged. Raises ValueError with the end of a sentence,
    which never has a user, a password or a key.
    """
    given = base_url.strip()
    parts = _split(given)
    path = parts.path.rstrip("/")
    is_whole = path.endswith(CHAT_PATH)
    if is_whole:
        path = path[: -len(CHAT_PATH)].rstrip("/")
    root_path = path if is_whole else _root_path(path, parts.query)
    origin = f"{parts.scheme}://{parts.netloc}"
    if not parts.query and not is_whole:
        # Unchanged: jobs in ledgers of older versions are filed under this name.
        given = base_url.rstrip("/")
        name = given.removesuffix("/v1").rstrip("/")
        base = name if _root_path(urlsplit(name.strip()).path.rstrip("/"), "") == root_path else given
        return Address(origin + root_path, "", base, name)
    short = path.removesuffix("/v1").rstrip("/")
    base_path = next((p for p in (short, path) if _root_path(p, parts.query) == root_path), path + CHAT_PATH)
    base = origin + base_path + (f"?{parts.query}" if parts.query else "")
    return Address(origin + root_path, parts.query, base, base if parts.query else base.removesuffix("/v1"))


def other_addresses(address: Address) -> list[Address]:
    """Other addresses at which this host may have its API, most likely first: with or without `/v1`, or at the top."""
    parts = urlsplit(address.root)
    origin = f"{parts.scheme}://{parts.netloc}"
    query = f"?{address.query}" if address.query else ""
    bare = parts.path.removesuffix("/v1")
    paths = [bare if bare != parts.path else f"{parts.path}/v1", "/v1", "/api/v1", "/openai/v1"]
    return [
        parse_address(f"{origin}{path}{CHAT_PATH}{query}")
        for path in dict.fromkeys(paths)
        if path != parts.path
    ]


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        words = "a port is a number from 0 to 65535" if "ort" in str(exc) else "its host is not readable"
        raise ValueError(f"is not an address: {words}") from None
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise ValueError("must be an http:// or https:// address and name a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "must not carry a user or password: the key is a setting of its own, ANTREAN_API_KEY"
        )
    if parts.fragment:
        raise ValueError("must not hold a fragment (#…): nothing of it is ever sent")
    if not is_host(host):
        raise ValueError("is not an address: its host is not readable")
    if any(_SECRETS_IN_QUERY.fullmatch(name) for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise ValueError(
            "must not carry a key in its query: the key is a setting of its own, ANTREAN_API_KEY"
        )
    return parts


def is_host(host: str) -> bool:
    if ":" in host:
        try:
            return bool(IPv6Address(host.replace("%25", "%")))
        except ValueError:
            return False
    if not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError:
            return False
    labels = host.removesuffix(".").split(".")
    return len(host) <= 253 and all(_LABEL.fullmatch(label) for label in labels)


def _root_path(path: str, query: str) -> str:
    if path.endswith("/v1"):
        return path.removesuffix("/v1").rstrip("/") + "/v1"
    return path if _has_version(path, query) else f"{path}/v1"


def _has_version(path: str, query: str) -> bool:
    last = path.split("/")[-3:]
    if _VERSION.fullmatch(last[-1]) or last[-2:] == ["endpoints", "openapi"]:  # the latter: Vertex AI
        return True
    if last[-1] == "openai" and len(last) > 1 and _VERSION.fullmatch(last[-2]):
        return True
    if last[:2] == ["openai", "deployments"] and last[-1]:
        return True
    return any(name.lower() in _VERSIONS_IN_QUERY for name, _ in parse_qsl(query, keep_blank_values=True))
