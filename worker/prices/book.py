"""The price of each model that an endpoint serves: the user's own table first, then the bundled prices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from worker.errors import SettingsError
from worker.policy.cost import Price, find_dearest
from worker.prices.bundled import find_bundled_price, is_known_provider
from worker.prices.own import OwnPrices, own_prices, read_own_prices
from worker.settings import EndpointSettings, Settings

_HOLDS_MS = 300_000  # some prices depend on the time of day
_MOST_MODELS = 1_000


class PriceBook:
    """Prices at one endpoint. A price that was found is held for five minutes. Thread-safe."""

    def __init__(
        self,
        base_url: str,
        own: OwnPrices | None = None,
        *,
        table: OwnPrices | None = None,
        find_bundled: Callable[..., Price | None] = find_bundled_price,
    ) -> None:
        """`table`: prices of this endpoint alone, which win over `own`."""
        self._base_url = base_url
        self._own = own or OwnPrices()
        self._table = table or OwnPrices()
        self._find_bundled = find_bundled
        self._found: dict[tuple[str, ...], tuple[int, Price | None]] = {}

    def find(self, *models: str, now_ms: int) -> Price | None:
        """The price of a model that has these names, the most exact first; None where it is not known."""
        held = self._found.get(models)
        if held is not None and abs(now_ms - held[0]) < _HOLDS_MS:
            return held[1]
        price = self._find(models, now_ms)
        if (
            len(self._found) >= _MOST_MODELS
        ):  # an endpoint that names each answer otherwise must not fill memory
            self._found.clear()
        self._found[models] = (now_ms, price)
        return price

    def _find(self, models: tuple[str, ...], now_ms: int) -> Price | None:
        tables = (self._table.find_named, self._table.find_by_pattern)
        for find in (*tables, self._own.find_named, self._own.find_by_pattern, self._bundled(now_ms)):
            for model in models:
                price = find(model)
                if price is not None:
                    return price
        return None

    def _bundled(self, now_ms: int) -> Callable[[str], Price | None]:
        return lambda model: self._find_bundled(
            model, base_url=self._base_url, provider=self._own.provider, now_ms=now_ms
        )


class EndpointPrices:
    """The prices at several endpoints, of which any may serve a job. Thread-safe."""

    def __init__(self, books: Sequence[tuple[EndpointSettings, PriceBook]]) -> None:
        self._books = books

    def find(self, *models: str, now_ms: int) -> Price | None:
        """The dearest price of a model over the endpoints that serve it; None where one of them is not known."""
        books = [book for one, book in self._books if any(map(one.serves, models))]
        prices = [book.find(*models, now_ms=now_ms) for book in books]
        return find_dearest(one for one in prices if one is not None) if None not in prices else None

    def find_lacking(self, model: str, *, now_ms: int) -> list[EndpointSettings]:
        """The endpoints that serve the model, and whose price of it is not known, in their order."""
        return [
            one for one, book in self._books if one.serves(model) and book.find(model, now_ms=now_ms) is None
        ]


def open_prices(settings: Settings) -> EndpointPrices:
    """The prices at the endpoints of these settings, for a call that may go to any of them.

    Raises SettingsError for a file of prices that has a fault.
    """
    return EndpointPrices([(one, open_price_book(settings.for_endpoint(one))) for one in settings.endpoints])


def open_price_book(settings: Settings) -> PriceBook:
    """The prices at the one endpoint of these settings. Raises SettingsError for a file of prices that has a fault."""
    own = read_own_prices(settings.prices_file)
    if own.provider is not None and not is_known_provider(own.provider):
        raise SettingsError(
            [f"ANTREAN_PRICES_FILE: {settings.prices_file}: no prices are bundled of provider {own.provider}"]
        )
    return PriceBook(settings.base_url, own, table=own_prices(settings.table_prices))
