"""What `antrean prune` says of what it would remove."""

from __future__ import annotations

import heapq
from typing import Any

from rich.text import Text

from schemas.job import JobState
from worker.cli.console import err, out
from worker.operations.batches import fetch_label
from worker.reports.summary import cost_facts, describe_cost, format_bytes, format_count
from worker.storage.engine import Ledger
from worker.storage.prune_survey import Share, Survey
from worker.text.printable import printable

_SHOWN = 10


def print_survey(ledger: Ledger, found: Survey, *, is_question: bool, with_usage: bool) -> None:
    """Prints the largest batches, then the sum; on standard error where a question follows."""
    console = err if is_question else out
    largest = heapq.nlargest(_SHOWN, found.shares.items(), key=lambda item: item[1].total)
    for batch_id, share in largest:
        # The id stands alone on its line: nothing cuts it, however narrow the terminal.
        console.print(Text(printable(batch_id) or "jobs of no batch"))
        label = fetch_label(ledger, batch_id)
        console.print(Text(f"  {f'{printable(label)} · ' if label else ''}{_describe(share)}"))
    total = found.total
    more = total.total - sum(share.total for _, share in largest)
    if more:
        console.print(Text(f"and {format_count(more, 'job')} of other batches"))
    console.print(Text(f"{format_count(total.total, 'job')} would be removed: {_describe(total)}"))
    if found.spared:
        console.print(Text(f"{format_count(found.spared, 'job')} would stay: others want them"))
    if found.open:
        console.print(Text(f"{format_count(found.open, 'job')} would stay: they have not ended"))
    if total.total:
        console.print(Text("The same input would be called, and paid for, again."))
        if total.counts[JobState.SUCCEEDED]:
            # What `run` and `results` refuse from then on is said while it can be helped.
            console.print(
                Text("`run` and `results` would need --force to write over a file of their results.")
            )
        if with_usage:
            console.print(Text("`antrean usage` would forget their tokens."))


def survey_facts(ledger: Ledger, found: Survey) -> dict[str, Any]:
    """The survey as JSON; `batches` are the largest 1,000 at most, `batch_id` null is jobs of no batch."""
    return {
        "jobs": found.total.total,
        "spared": found.spared,
        "open": found.open,
        **_figures(found.total),
        "batches": [
            {
                "batch_id": batch_id or None,
                "label": fetch_label(ledger, batch_id),
                "jobs": {state.value: share.counts[state] for state in JobState if share.counts[state]},
                **_figures(share),
            }
            for batch_id, share in sorted(found.shares.items(), key=lambda item: item[1].total, reverse=True)
        ],
    }


def _describe(share: Share) -> str:
    states = [
        f"{format_count(share.counts[state])} {state.value}" for state in JobState if share.counts[state]
    ]
    size = format_bytes(share.size_bytes)
    tokens = f"{format_count(share.prompt_tokens)} prompt + {format_count(share.completion_tokens)} completion tokens"
    return " · ".join([*states, size, tokens, describe_cost(share.cost)])


def _figures(share: Share) -> dict[str, float | int | None]:
    return {
        "size_bytes": share.size_bytes,
        "prompt_tokens": share.prompt_tokens,
        "completion_tokens": share.completion_tokens,
        **cost_facts(share.cost),
    }
