"""What a table of prices says: a model's name, or a pattern of names, and what its tokens cost. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from worker.text.printable import printable

_RATES = ("input", "output", "cached")
_LARGEST = Decimal(1_000_000)  # dollars a million tokens
_QUOTED = '[models."gpt-4.1"]'
EXAMPLE = 'a table such as [models."gpt-4o*"] with input = 2.5 and output = 10'


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """Dollars a million tokens of the models that `model` names. `cached` None: as `input`."""

    model: str
    input: Decimal
    output: Decimal
    cached: Decimal | None = None


def read_prices(where: str, told: object, problems: list[str]) -> tuple[ModelPrice, ...]:
    """The prices by model, in the order of the table. Appends a sentence for each thing that is wrong."""
    example = 'tables such as {"gpt-4o*" = {input = 2.5, output = 10}}'
    if not isinstance(told, dict):
        problems.append(f"{where} must be {example}")
        return ()
    found = (
        read_price(f"{where}.{printable(name)}", name, table, problems, example=example)
        for name, table in told.items()
    )
    return tuple(one for one in found if one is not None)


def read_price(
    where: str, model: str, told: object, problems: list[str], *, example: str = EXAMPLE
) -> ModelPrice | None:
    """The price of one model; None, and a sentence for each thing that is wrong."""
    if not isinstance(told, dict):
        problems.append(f"{where} must be {example}")
        return None
    before = len(problems)
    rates: dict[str, Decimal] = {}
    for name, value in told.items():
        if isinstance(value, dict):
            problems.append(f"{where}: a name with a dot is written in quotes, as in {_QUOTED}")
            return None
        if name not in _RATES:
            problems.append(f"{where}: {printable(name)} is unknown; a model has input, output and cached")
            continue
        rate = _as_decimal(value)
        if rate is None or not 0 <= rate <= _LARGEST:
            problems.append(
                f"{where}: {name} must be dollars a million tokens, a number from 0 to {_LARGEST:,}"
            )
            continue
        rates[name] = rate
    problems += [f"{where}: {name} is missing" for name in ("input", "output") if name not in told]
    if len(problems) > before:
        return None
    return ModelPrice(model, rates["input"], rates["output"], rates.get("cached"))


def dump_prices(prices: Iterable[ModelPrice]) -> dict[str, dict[str, float]]:
    """The table that `read_prices` makes equal values of."""
    return {
        one.model: {name: float(rate) for name in _RATES if (rate := getattr(one, name)) is not None}
        for one in prices
    }


def _as_decimal(value: object) -> Decimal | None:
    """The number as its writer wrote it; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return None
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    return number if number.is_finite() else None
