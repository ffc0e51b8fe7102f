"""Options that two commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Deadline = Annotated[
    str | None,
    typer.Option(
        help="When to stop calling: a duration such as 45m, 6h or 1d12h, or a time with its zone such as "
        "2026-07-02T06:00Z.",
        metavar="<when>",
        show_default=False,
    ),
]
Weight = Annotated[
    str | None,
    typer.Option(
        help="The batch's share of the tokens beside other batches: 2 has twice as many as 1. From 0.01 to 100.",
        metavar="<number>",
        show_default="1",
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        help="The most that all answers of the batch may take: 5usd or 500000tok. At its budget it waits.",
        metavar="<sum>",
        show_default=False,
    ),
]
EndpointName = Annotated[
    str | None, typer.Option(help="One of several endpoints, by the name of its table.", show_default=False)
]
