"""The help of options that two commands have."""

DEADLINE_HELP = (
    "When to stop calling: a duration such as 45m, 6h or 1d12h, or a time with its zone such as "
    "2026-07-02T06:00Z."
)
WEIGHT_HELP = (
    "The batch's share of the tokens beside other batches: 2 has twice as many as 1. From 0.01 to 100."
)
BUDGET_HELP = "The most that all answers of the batch may take: 5usd or 500000tok. At its budget it waits."
ENDPOINT_HELP = "One of several endpoints, by the name of its table."
