"""What an answer costs: tokens times price, in whole numbers. Pure.

A price is in picodollars (10⁻¹² USD) a token, so that $0.0375 a million tokens has no fraction. A cost is in
nanodollars (10⁻⁹ USD), rounded up. An unknown price gives an unknown cost, None, and never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

NANO_PER_USD = 10**9
# Tokens of an answer: PostgreSQL's integer. A larger count is certainly wrong, but its answer must still be stored.
LARGEST_COUNT = 2**31 - 1
LARGEST_COST_NANO = 2**63 - 1  # of a column
_PICO_PER_NANO = 1000
_PICO_A_TOKEN = 10**6  # of a dollar a million tokens


@dataclass(frozen=True, slots=True)
class Rates:
    """Picodollars a token. `cached_pico` None: cached tokens of the prompt cost as much as its others."""

    input_pico: int
    output_pico: int
    cached_pico: int | None = None


@dataclass(frozen=True, slots=True)
class Price:
    """The price of a model. `answer_pico`: what each answer costs beside its tokens.

    `tiers`: from which prompt on (more tokens than that) which rates hold for all tokens; ascending.
    """

    rates: Rates
    answer_pico: int = 0
    tiers: tuple[tuple[int, Rates], ...] = ()

    @property
    def is_free(self) -> bool:
        """Whether every answer costs nothing, however long it is."""
        every = (self.rates, *(rates for _, rates in self.tiers))
        return not self.answer_pico and not any(
            one.input_pico or one.output_pico or one.cached_pico for one in every
        )


@dataclass(frozen=True, slots=True)
class CostSum:
    """The cost of several answers: `nano` of those whose price is known; `unknown` is the number of the others."""

    nano: int = 0
    unknown: int = 0
    answered: int = 0

    def __add__(self, other: CostSum) -> CostSum:
        return CostSum(self.nano + other.nano, self.unknown + other.unknown, self.answered + other.answered)

    @property
    def known_nano(self) -> int | None:
        """The cost; None where nothing of it is known."""
        return None if self.unknown and self.unknown == self.answered else self.nano


NO_COST = CostSum()


def find_dearest(prices: Iterable[Price]) -> Price | None:
    """A price that no answer at any of these prices exceeds; None without one."""
    some = tuple(prices)
    if len(some) < 2:
        return some[0] if some else None
    starts = sorted({start for one in some for start, _ in one.tiers})
    return Price(
        _dearest_rates([one.rates for one in some]),
        answer_pico=max(one.answer_pico for one in some),
        tiers=tuple((start, _dearest_rates([_rates_above(one, start) for one in some])) for start in starts),
    )


def _rates_above(price: Price, start: int) -> Rates:
    """The rates of prompts with more tokens than `start`."""
    return next((rates for above, rates in reversed(price.tiers) if above <= start), price.rates)


def _dearest_rates(rates: Sequence[Rates]) -> Rates:
    return Rates(
        max(one.input_pico for one in rates),
        max(one.output_pico for one in rates),
        max(one.input_pico if one.cached_pico is None else one.cached_pico for one in rates),
    )


def sum_costs(costs: Iterable[int | None]) -> CostSum:
    """The sum over answers; None is an answer of unknown price."""
    nano = unknown = answered = 0
    for cost in costs:
        answered += 1
        if cost is None:
            unknown += 1
        else:
            nano += cost
    return CostSum(nano, unknown, answered)


def to_pico(usd_per_million: Decimal) -> int:
    """Picodollars a token of a price in dollars a million tokens. What is below a picodollar is rounded."""
    return int((usd_per_million * _PICO_A_TOKEN).to_integral_value(ROUND_HALF_UP))


def compute_cost(
    price: Price | None, *, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0
) -> int | None:
    """Nanodollars that an answer cost, rounded up; None where the price is unknown.

    Cached tokens are part of the prompt's, reasoning tokens of the completion's. An answer without any tokens did not
    say them: what it cost is unknown, too, unless the model is free.
    """
    if price is None:
        return None
    if prompt_tokens <= 0 and completion_tokens <= 0:
        return 0 if price.is_free else None
    rates = price.rates
    for above, dearer in price.tiers:
        if prompt_tokens > above:
            rates = dearer
    cached = max(0, min(cached_tokens, prompt_tokens))
    cached_pico = rates.input_pico if rates.cached_pico is None else rates.cached_pico
    pico = (
        price.answer_pico
        + (max(0, prompt_tokens) - cached) * rates.input_pico
        + cached * cached_pico
        + max(0, completion_tokens) * rates.output_pico
    )
    return min(LARGEST_COST_NANO, -(-pico // _PICO_PER_NANO))
