"""The help of `--deadline`, which two commands have."""

DEADLINE_HELP = (
    "When to stop calling: a duration such as 45m, 6h or 1d12h, or a time with its zone such as "
    "2026-07-02T06:00+02:00."
)
