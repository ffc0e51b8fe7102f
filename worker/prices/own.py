"""The user's own prices: a TOML file of models, or patterns of their names, with what their tokens cost."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from worker.errors import SettingsError
from worker.policy.cost import Price, Rates, to_pico
from worker.text.printable import printable

_NAME = "ANTREAN_PRICES_FILE"
_RATES = ("input", "output", "cached")
_LARGEST = Decimal(1_000_000)  # dollars a million tokens
_QUOTED = '[models."gpt-4.1"]'
_EXAMPLE = 'a table such as [models."gpt-4o*"] with input = 2.5 and output = 10'


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
        problems.append(f"{where}: {printable(name)} is unknown; it holds currency, provider and {_EXAMPLE}")
    if told.get("currency", "USD") != "USD":
        problems.append(f"{where}: currency must be USD")
    provider = told.get("provider")
    if provider is not None and not isinstance(provider, str):
        problems.append(f"{where}: provider must be a name such as openai")
    tables = told.get("models", {})
    if not isinstance(tables, dict):
        problems.append(f"{where}: models must be tables: {_EXAMPLE}")
        tables = {}
    models = []
    for name, table in tables.items():
        price = _read_price(f"{where}: models.{printable(name)}", table, problems)
        if price is not None:
            models.append((name, price))
    if problems:
        raise SettingsError(problems)
    return OwnPrices(tuple(models), provider)


def _read_price(where: str, table: Any, problems: list[str]) -> Price | None:
    if not isinstance(table, dict):
        problems.append(f"{where} must be {_EXAMPLE}")
        return None
    before = len(problems)
    rates: dict[str, int] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            problems.append(f"{where}: a name with a dot is written in quotes, as in {_QUOTED}")
            return None
        if name not in _RATES:
            problems.append(f"{where}: {printable(name)} is unknown; a model has input, output and cached")
            continue
        is_number = isinstance(value, (int, Decimal)) and not isinstance(value, bool)
        if not is_number or not Decimal(value).is_finite() or not 0 <= value <= _LARGEST:
            problems.append(
                f"{where}: {name} must be dollars a million tokens, a number from 0 to {_LARGEST:,}"
            )
            continue
        rates[name] = to_pico(Decimal(value))
    problems += [f"{where}: {name} is missing" for name in ("input", "output") if name not in table]
    if len(problems) > before:
        return None
    return Price(Rates(rates["input"], rates["output"], rates.get("cached")))
