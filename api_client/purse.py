"""Whether a refusal says that the account is empty, or that too much runs at once. Pure.

A 402 is not always an empty account, and an empty account is told with 400, 402, 403, 412 and 429.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_NOT_A_WORD = re.compile(r"[^a-z0-9]+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_LOOKED_AT = 600

# Parts of codes, in lower case with underscores. They count whatever else the answer says.
EMPTY_CODES = (
    "insufficient_quota",
    "insufficient_balance",
    "insufficient_credit",
    "insufficient_funds",
    "exceeded_current_quota",
    "billing_hard_limit",
    "billing_not_active",
    "budget_exceeded",
    "out_of_credit",
    "no_credit",
    "arrear",
)
BUSY_CODES = (
    "in_flight_budget",
    "rate_limit",
    "ratelimit",
    "too_many_requests",
    "throttl",
    "slow_down",
    "concurrency",
    "limit_requests",
    "limit_burst",
)
# Messages of answers whose code says nothing of it.
_EMPTY_WORDS = re.compile(
    r"credit balance is too low"
    r"|billing hard limit"
    r"|reached your specified (?:\w+ )?(?:api )?usage limits?"
    r"|used all available credits"
    r"|(?:reached|exceeded) (?:its|your|the) (?:monthly )?(?:spending|spend|included credits?|credit) (?:limit|cap)"
    r"|exceeded your monthly included credits"
    r"|reach(?:ing|ed) the monthly spending limit"
    r"|insufficient (?:account )?(?:balance|credits?|funds)"
    r"|(?:credit|spend(?:ing)?|budget) limit (?:has been )?(?:exceeded|reached)"
    r"|budget has been exceeded"
    r"|key limit exceeded"
    r"|out of credits?\b"
    r"|not enough (?:credits?|balance)"
    r"|余额不足|账户已欠费",
    re.IGNORECASE,
)
# OpenAI says this of an empty account, and Google of a limit by the minute, which then tells the wait.
_EMPTY_OR_BUSY_WORDS = re.compile(
    r"exceeded your current quota, please check your plan and billing", re.IGNORECASE
)


def is_empty_code(codes: Iterable[str]) -> bool:
    """Whether a code of the refusal says that the account is empty, or its own limit on spending reached."""
    return any(known in code for code in map(normalise_code, codes) for known in EMPTY_CODES)


def is_busy_code(codes: Iterable[str]) -> bool:
    """Whether a code of the refusal asks for fewer calls at a time."""
    return any(known in code for code in map(normalise_code, codes) for known in BUSY_CODES)


def speaks_of_an_empty_account(words: str, *, tells_a_wait: bool) -> bool:
    """Whether the message says that the account is empty. `tells_a_wait`: the answer says when to come again."""
    words = words[:_LOOKED_AT]
    if _EMPTY_WORDS.search(words) is not None:
        return True
    return not tells_a_wait and _EMPTY_OR_BUSY_WORDS.search(words) is not None


def normalise_code(code: str) -> str:
    """A code in lower case with underscores; "" for a sentence."""
    if len(code) > 100 or " " in code.strip():
        return ""
    return _NOT_A_WORD.sub("_", _HUMP.sub("_", code).lower())
