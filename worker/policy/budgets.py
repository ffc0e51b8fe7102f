"""Budgets of batches: what a call may take is reserved before it, and replaced by what it took. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from worker.policy.cost import LARGEST_COUNT, NANO_PER_USD, Price, compute_cost

FIRST_COMPLETION_TOKENS = 4_096  # reserved for an answer without a bound, before any answer is known
MOST_TOKENS = 10**15
MOST_USD = 10**9
_MARGIN = 1.25  # over what 95 of 100 answers took lately
_ENOUGH = 20  # answers tell what the next one may take
_IMAGE_TOKENS = 2_000  # at least
_BYTES_AN_IMAGE_TOKEN = 100
# A URL of data and nothing else: a text may begin with the same word.
_DATA = re.compile(r'"data:[^",\s]*;base64,[A-Za-z0-9+/=_\\-]*"')
# A comma is between thousands only: 0,50 or 1,5 may be meant as a fraction.
_NUMBER = r"(?:[1-9]\d{0,2}(?:,\d{3})+|\d+(?:_\d+)*)(?:\.\d+)?"
_BUDGET = re.compile(rf"(\$?)({_NUMBER})\s*(usd|tok|tokens)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Amount:
    """Tokens, and nanodollars. `nano` None: the price is not known."""

    tokens: int = 0
    nano: int | None = 0

    def __add__(self, other: Amount) -> Amount:
        nano = None if self.nano is None or other.nano is None else self.nano + other.nano
        return Amount(self.tokens + other.tokens, nano)


@dataclass(frozen=True, slots=True)
class Limit:
    """The most that the answers of a batch may take: tokens or nanodollars. None: without a bound."""

    tokens: int | None = None
    nano: int | None = None

    def fits(self, taken: Amount, more: Amount) -> bool:
        """Whether `more` may be taken besides what was. What has no known price fits no limit in dollars."""
        whole = taken + more
        has_tokens = self.tokens is None or whole.tokens <= self.tokens
        return has_tokens and (self.nano is None or (whole.nano is not None and whole.nano <= self.nano))


def goes_on(limit: Limit, *, spent: Amount, reserved: Amount, wanted: Amount) -> bool:
    """Whether a batch that waits at its budget is to be tried again, where the smallest job refused took `wanted`.

    While calls are in flight it must be worth it: near the end of a budget jobs would be claimed and refused again and
    again, one for each call that ends.
    """
    taken = spent + reserved
    if not reserved.tokens:
        return limit.fits(taken, wanted)
    several = Amount(8 * wanted.tokens, None if wanted.nano is None else 8 * wanted.nano)
    return limit.fits(taken, several)


def estimate(body: str, price: Price | None, *, usual_tokens: int | None) -> Amount:
    """The most that the answer to a request should take.

    No tokenizer makes more tokens than there are bytes, so that the prompt is never estimated too low; of images, which
    are sent as data, nobody can tell. The completion is bounded by the request, or else by what such answers took
    lately: `usual_tokens`, with a margin. No answer is settled with more than the ledger keeps of one.
    """
    prompt_tokens = estimate_prompt_tokens(body)
    bound = read_completion_bound(body)
    if bound is None:
        bound = FIRST_COMPLETION_TOKENS if usual_tokens is None else math.ceil(usual_tokens * _MARGIN)
    bound = min(bound, LARGEST_COUNT - min(prompt_tokens, LARGEST_COUNT))
    nano = compute_cost(price, prompt_tokens=prompt_tokens, completion_tokens=bound)
    return Amount(prompt_tokens + bound, nano)


def estimate_prompt_tokens(body: str) -> int:
    """A bound of the tokens of a request's messages: its bytes, where images count by their size."""
    data = [len(found) for found in _DATA.findall(body)] if ";base64," in body else []
    text = _DATA.sub('""', body) if data else body
    images = sum(max(_IMAGE_TOKENS, length // _BYTES_AN_IMAGE_TOKEN) for length in data)
    return len(text.encode("utf-8", "surrogatepass")) + images


def read_completion_bound(body: str) -> int | None:
    """The most tokens that the request allows all of its answer to have; None where it sets no bound."""
    try:
        told = json.loads(body)
    except ValueError:
        return None
    if not isinstance(told, dict):
        return None
    bounds = [_count(told.get(name)) for name in ("max_completion_tokens", "max_tokens")]
    known = [bound for bound in bounds if bound is not None]
    choices = _count(told.get("n"))
    return max(known) * (1 if choices is None else max(1, choices)) if known else None


def find_usual(recent: Sequence[int]) -> int | None:
    """What 95 of 100 of these answers took at most; None where they are too few to tell."""
    if len(recent) < _ENOUGH:
        return None
    return sorted(recent)[math.ceil(0.95 * len(recent)) - 1]


def parse_budget(text: str) -> Limit:
    """`5usd`, `$0.50`, `500000tok` or `500_000 tokens`. Raises ValueError with a sentence."""
    found = _BUDGET.fullmatch(text.strip())
    unit = "" if found is None else (found[3] or ("usd" if found[1] else "")).lower()
    if found is None or not unit or (found[1] and unit != "usd"):
        raise ValueError("is neither dollars nor tokens: write 5usd or 500000tok")
    amount = Decimal(re.sub(r"[_,]", "", found[2]))
    if unit == "usd":
        if amount > MOST_USD:
            raise ValueError(f"is more than {MOST_USD:,} dollars")
        return Limit(nano=int(amount * NANO_PER_USD))
    if amount != int(amount) or amount > MOST_TOKENS:
        raise ValueError(f"must be a whole number of tokens, at most {MOST_TOKENS:,}")
    return Limit(tokens=int(amount))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
