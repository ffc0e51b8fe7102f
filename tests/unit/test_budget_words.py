"""What is said of a batch that waits at its budget."""

from __future__ import annotations

from dataclasses import replace

from worker.policy.budgets import Amount, Limit
from worker.reports.budgets import describe_wait
from worker.storage.budgets import Budget

AT_ITS_BUDGET = Budget("b", Limit(tokens=800), Amount(630), Amount(), 1, Amount(194))
UNPRICED = replace(AT_ITS_BUDGET, limit=Limit(nano=5), wanted=Amount(194, None))


def test_the_command_that_raises_a_budget_is_told_as_it_must_be_typed() -> None:
    """Of a simulated run it must name its home: no other command finds its batch."""
    for found in (AT_ITS_BUDGET, UNPRICED):
        said = describe_wait(found, antrean="ANTREAN_HOME=/s antrean")
        assert said is not None and "`ANTREAN_HOME=/s antrean budget b" in said
        said = describe_wait(found)
        assert said is not None and "`antrean budget b" in said
    assert describe_wait(None) is None
    assert describe_wait(replace(AT_ITS_BUDGET, waits_since_ms=None)) is None
