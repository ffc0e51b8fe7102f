"""The prices that the `genai-prices` package brings with it. Its data is bundled: nothing is fetched.

The package takes a tenth of a second and about twelve megabytes, so it is imported when a price is first asked for.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from worker.policy.cost import Price, Rates, to_pico

_ANSWERS_A_PRICE = 1000  # requests are priced by the thousand
_NO_PROVIDERS = ("localhost", "local", "internal", "lan", "home", "test", "example", "invalid")


def find_bundled_price(model: str, *, base_url: str, provider: str | None, now_ms: int) -> Price | None:
    """The price of a model at that time, as the provider at `base_url` asks it; None where it is not known.

    A model's name alone names no price: whoever serves it sets that. With `provider`, the prices of that one hold.
    """
    if provider is None and not may_be_known(base_url):
        return None
    # Local: see above.
    from genai_prices import Usage, calc_price

    whose: Any = {"provider_api_url": base_url} if provider is None else {"provider_id": provider}
    try:
        found = calc_price(
            Usage(input_tokens=1, output_tokens=1),
            model,
            genai_request_timestamp=datetime.fromtimestamp(now_ms / 1000, UTC),
            **whose,
        )
    except (LookupError, ValueError):
        return None
    return _read(found.model_price)


def is_known_provider(provider: str) -> bool:
    """Whether the package has prices of a provider with this id."""
    from genai_prices.data_snapshot import find_provider_by_id, get_snapshot  # local: see above

    return find_provider_by_id(get_snapshot().providers, provider) is not None


def may_be_known(base_url: str) -> bool:
    """Whether a provider with published prices may be at this address: none is on one's own machine or network."""
    host = (urlsplit(base_url).hostname or "").rstrip(".")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." in host and host.rpartition(".")[2] not in _NO_PROVIDERS
    return False


def _read(price: Any) -> Price | None:
    """The same as ours; None where it has no price for prompts or for completions."""
    told = {name: getattr(price, name, None) for name in ("input_mtok", "output_mtok", "cache_read_mtok")}
    if told["input_mtok"] is None or told["output_mtok"] is None:
        return None
    starts = sorted({tier.start for one in told.values() for tier in getattr(one, "tiers", ())})

    def rates(start: int) -> Rates:
        found = {name: None if one is None else to_pico(_at(one, start)) for name, one in told.items()}
        return Rates(found["input_mtok"] or 0, found["output_mtok"] or 0, found["cache_read_mtok"])

    requests = getattr(price, "requests_kcount", None)
    answer = Decimal(0) if requests is None else _at(requests, -1) / _ANSWERS_A_PRICE
    return Price(
        rates(-1),
        answer_pico=to_pico(answer * 1_000_000),
        tiers=tuple((start, rates(start)) for start in starts),
    )


def _at(price: Any, start: int) -> Decimal:
    """The price in the tier that begins at `start`, which may be none of this one's own."""
    found = getattr(price, "base", price)
    for tier in getattr(price, "tiers", ()):
        if tier.start <= start:
            found = tier.price
    return Decimal(found)
