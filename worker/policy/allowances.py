"""What is reserved of the tokens a minute for a call that is not answered yet. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence


def reserve_tokens(lately: Sequence[int], *, unknown: int) -> int:
    """The tokens to reserve for a call: what 95 of 100 such answers took at most. `unknown` where there were none.

    The nearest rank: of fewer than twenty answers it is the largest.
    """
    if not lately:
        return unknown
    return sorted(lately)[math.ceil(0.95 * len(lately)) - 1]
