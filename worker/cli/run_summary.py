"""What `antrean run` says when all has ended."""

from __future__ import annotations

from pathlib import Path

from worker.cli.console import complain, err, note, out, print_json
from worker.files.names import as_text
from worker.operations.run_work import Work
from worker.operations.tracking import Progress
from worker.reports.batchlines import Counts
from worker.reports.calls import call_facts, describe_failed_calls, describe_latencies
from worker.reports.summary import (
    cost_facts,
    describe_cost,
    describe_finish_reasons,
    format_count,
    format_seconds,
)


def print_summary(
    work: Work, progress: Progress, counts: Counts, *, output: Path, seconds: float, as_json: bool
) -> None:
    """Prints how many jobs succeeded, what failed, what it cost and where the results are; one object as JSON."""
    # What the file holds is what counts: another run may have tried again what failed here.
    succeeded, missing = counts.succeeded, len(work.ids) - counts.total
    facts = {
        "batch_id": work.batch_id,
        "jobs": len(work.ids),
        "succeeded": succeeded,
        "failed": counts.total - succeeded,
        "missing": missing,
        "already_done": work.done,
        "failures": dict(progress.failures),
        "finish_reasons": dict(counts.finish_reasons),
        "prompt_tokens": progress.prompt_tokens,
        "completion_tokens": progress.completion_tokens,
        **cost_facts(progress.cost),
        **call_facts(progress.calls),
        "seconds": round(seconds, 3),
        "output": as_text(output),
    }
    if as_json:
        print_json(facts)
        return
    tokens = f"{format_count(progress.prompt_tokens)} prompt + {format_count(progress.completion_tokens)} completion"
    # Results on standard output leave standard error for everything else.
    say = err.say if str(output) == "-" else out.say
    before = f" ({format_count(work.done)} were done before)" if work.done else ""
    say((format_count(succeeded), "bold"), f" of {format_count(len(work.ids))} jobs succeeded{before}")
    if counts.total > succeeded:
        kinds = ", ".join(f"{kind} {count}" for kind, count in progress.failures.most_common())
        complain(
            f"{format_count(counts.total - succeeded, 'job')} failed{f' ({kinds})' if kinds else ''}; "
            "the same command tries them again"
        )
    if counts.finish_reasons:
        note(f"unusual finish reasons: {describe_finish_reasons(counts.finish_reasons)}")
    if missing:
        complain(
            f"{format_count(missing)} of {format_count(len(work.ids), 'line')} are missing: their jobs were removed "
            "or are being tried again by another run; the same command completes them"
        )
    if failed_calls := describe_failed_calls(progress.calls):
        note(failed_calls)
    if latencies := describe_latencies(progress.calls):
        say(f"latency {latencies}")
    where = "above" if str(output) == "-" else f"in {output}"
    cost = describe_cost(progress.cost)
    say(f"{tokens} tokens · {cost} · {format_seconds(seconds)} · results {where} · {work.batch_id}")
