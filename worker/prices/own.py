"""The user's own prices: a TOML file of models, or patterns of their names, with what their tokens cost."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path

from worker.errors import SettingsError
from worker.policy.cost import Price, Rates, to_pico
from worker.settings.prices import EXAMPLE, ModelPrice, read_price
from worker.text.printable import printable

_NAME = "ANTREAN_PRICES_FILE"


@dataclass(frozen=True, slots=True)
class OwnPrices:
    """Prices by the model's name or a pattern of names, in the order of the file.

    `provider`: whose bundled prices hold for all other models, whatever the endpoint's address is.
    """

    models: tuple[tuple[str, Price], ...] = ()
    provider: str | None = None

    def find_named(self, model: str) -> Price | None:
        """The price of the entry with this name."""
        return next((price for name, price in self.models if name == model), None)

    def find_by_pattern(self, model: str) -> Price | None:
        """The price of the first entry whose pattern (`*`, `?`) fits."""
        return next((price for pattern, price in self.models if fnmatchcase(model, pattern)), None)


def read_own_prices(file: Path | None) -> OwnPrices:
    """What the file says; nothing without one. Raises SettingsError that names every problem."""
    if file is None:
        return OwnPrices()
    where = f"{_NAME}: {printable(str(file))}"
    try:
        with file.open("rb") as stream:
            told = tomllib.load(stream, parse_float=Decimal)
    except OSError as exc:
        raise SettingsError([f"{where} cannot be read ({exc.strerror})"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise SettingsError([f"{where} is not TOML: {printable(str(exc))}"]) from None
    problems: list[str] = []
    for name in told.keys() - {"currency", "provider", "models"}:
        problems.append(f"{where}: {printable(name)} is unknown; it holds currency, provider and {EXAMPLE}")
    if told.get("currency", "USD") != "USD":
        problems.append(f"{where}: currency must be USD")
    provider = told.get("provider")
    if provider is not None and not isinstance(provider, str):
        problems.append(f"{where}: provider must be a name such as openai")
    tables = told.get("models", {})
    if not isinstance(tables, dict):
        problems.append(f"{where}: models must be tables: {EXAMPLE}")
        tables = {}
    models = [
        (name, _as_price(price))
        for name, table in tables.items()
        if (price := read_price(f"{where}: models.{printable(name)}", name, table, problems)) is not None
    ]
    if problems:
        raise SettingsError(problems)
    return OwnPrices(tuple(models), provider)


def own_prices(prices: Iterable[ModelPrice]) -> OwnPrices:
    """The prices that the table of an endpoint has."""
    return OwnPrices(tuple((one.model, _as_price(one)) for one in prices))


def _as_price(told: ModelPrice) -> Price:
    return Price(
        Rates(
            to_pico(told.input), to_pico(told.output), None if told.cached is None else to_pico(told.cached)
        )
    )
