"""`antrean cancel` and `show`: ending jobs that are not needed any more, and all facts of one job."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from schemas.job import JobState
from worker.cli.console import note, out, print_json, print_text
from worker.cli.content import content_texts, parse_request
from worker.cli.listing import complete_batch_id, iso
from worker.errors import InputError
from worker.operations.cancel import CancelledBatch, CancelledJob
from worker.operations.cancel import cancel as cancel_jobs
from worker.operations.jobs import fetch_story_of, fetch_story_of_named
from worker.reports.summary import format_cost, format_count, format_seconds, to_usd
from worker.settings import load_settings
from worker.storage.migrating import prepare_ledger
from worker.storage.story import Attempt, Result, Story
from worker.text.printable import printable

_TELL_EVERY_S = 5.0
_LABEL = 13


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(
        "cancel", epilog="Example: antrean cancel batch_0193…\n\nExample: antrean cancel 0193f0a1-… --json"
    )(cancel)
    app.command(
        "show",
        epilog="Example: antrean show 0193f0a1-… --content\n\n"
        "Example: antrean show --custom-id notes/a.txt --batch batch_0193…",
    )(show)


def cancel(
    id_: Annotated[
        str,
        typer.Argument(
            metavar="BATCH|JOB", help="The id of a batch or of a job.", autocompletion=complete_batch_id
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Cancel a batch or one job.

    Jobs that are queued or waiting are cancelled at once. The call of a running job may be paid for already, so it
    is left to end, and its result is kept. If it ends without a result, the job is cancelled then. Jobs that have
    ended stay as they are. Jobs that another batch wants, too, go on for that batch; they are counted.

    If it is interrupted, call it again, and it goes on. `antrean retry --cancelled` queues the cancelled jobs
    again.
    """
    ledger = prepare_ledger(load_settings())
    told_s = time.monotonic()

    def tell(ended: int) -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= _TELL_EVERY_S:
            told_s = time.monotonic()
            note(f"{format_count(ended, 'job')} cancelled so far")

    done = cancel_jobs(ledger, id_, on_step=tell)
    if isinstance(done, CancelledJob):
        _print_cancelled_job(done, as_json=as_json)
    else:
        _print_cancelled_batch(done, as_json=as_json)


def _print_cancelled_batch(done: CancelledBatch, *, as_json: bool) -> None:
    if as_json:
        counts = {"cancelled": done.ended, "asked": done.asked, "running": done.running, "kept": done.kept}
        print_json({"batch_id": done.batch.id, **counts})
        return
    out.print(f"{format_count(done.ended, 'job')} cancelled")
    if done.kept:
        out.print(f"{format_count(done.kept, 'job')} stay: another batch wants them too")
    if done.asked:
        out.print(
            f"{format_count(done.asked, 'running job')} asked to stop: a result that one brings is kept"
        )
    elif done.running:
        out.print(f"{format_count(done.running, 'running job')} asked to stop before")
    if done.batch.submitted_at_ms is None:
        note("the batch is still being written down: what is added from now on is not cancelled")


def _print_cancelled_job(done: CancelledJob, *, as_json: bool) -> None:
    if as_json:
        counts = {"cancelled": int(done.is_ended), "asked": int(done.is_asked)}
        print_json({"job_id": done.job_id, "state": done.state.value, **counts})
    elif done.is_asked:
        out.print("the job is running and was asked to stop: a result that it brings is kept")
    elif done.is_ended:
        out.print("the job is cancelled")
    else:
        out.print(f"the job is {done.state.value} already: it stays as it is")


def show(
    job: Annotated[
        str | None, typer.Argument(help="The job's id, or the beginning of it.", show_default=False)
    ] = None,
    custom_id: Annotated[str | None, typer.Option(help="The job's name, instead of its id.")] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            help="With --custom-id: the batch in which the job has this name.",
            autocompletion=complete_batch_id,
        ),
    ] = None,
    content: Annotated[
        bool, typer.Option("--content", help="Also the request, the answer and the reasoning.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show all facts of a job.

    It shows the job's state, then each attempt with its worker, times, HTTP status, the endpoint's request id and
    message, the waits between attempts, and the tokens of the result. Texts are shown only with --content.

    The beginning of an id is enough if no other id begins with it. If several do, or have the same custom_id, they
    are listed. The `id` of an output line (batch_req_…) identifies its job, too, also for `antrean cancel`.
    """
    if (job is None) == (custom_id is None):
        raise InputError("name a job: by its id, or by its name with --custom-id")
    if batch is not None and custom_id is None:
        raise InputError("--batch is for --custom-id only: a job's id needs no batch")
    ledger = prepare_ledger(load_settings())
    if custom_id is not None:
        story = fetch_story_of_named(ledger, custom_id, batch, with_content=content)
    else:
        story = fetch_story_of(ledger, job or "", with_content=content)
    if as_json:
        print_json(_facts(story))
        return
    _print_job(story)
    for attempt in story.attempts:
        _print_attempt(attempt, _round(story, attempt.generation))
    if story.state is JobState.RUNNING:
        _head(f"attempt {story.claims}", *_round(story, story.generation), "running")
        _line("started", _moment(story.claimed_at_ms))
        _line("worker", _worker(story.worker_host, story.worker_id))
    if story.result is not None:
        _print_result(story.result)
    if story.content is not None:
        for label, text in content_texts(story.content):
            _head(label)
            print_text(text)


def _print_job(story: Story) -> None:
    out.print(Text(f"job {printable(story.id)}", style="bold"))
    state = story.state.value + (", held" if story.is_held else "")
    if story.not_before_ms is not None and story.state is JobState.WAITING:
        state += f" until {_moment(story.not_before_ms)}"
    if story.is_cancel_requested and not story.state.is_final:
        state += ", asked to stop"
    _line("state", state)
    if story.is_held:
        give_up = f"`antrean cancel {story.batch_id}` gives it up"
        _line("held", f"since its run was stopped: the same `antrean run` goes on, {give_up}")
    if story.failure_kind is not None:
        _line("why", _why(story.failure_kind, story.http_status, story.request_id))
        _line("", story.failure_message)
    if story.blocked_since_ms is not None:
        _line("blocked", f"since {_moment(story.blocked_since_ms)}, by a shut gate")
    _line("batch", story.batch_id or "none: a lone job")
    if story.batch_id is not None:
        _line("", f"{story.batch_label or ''}, position {story.position}".lstrip(", "))
    _line("custom_id", story.custom_id)
    for want in story.wanted_by:
        _line("wanted by", want.batch_id)
        where = f"{want.label or ''}, position {want.position}".lstrip(", ")
        _line("", f"{where}, as {want.custom_id}" if want.custom_id is not None else where)
    _line("source key", story.source_key)
    _line("model", story.model)
    _line("endpoint", story.endpoint)
    _line("request hash", story.request_hash)
    _line("key", story.idempotency_key)
    _line("created", _moment(story.created_at_ms))
    if story.state is JobState.QUEUED:
        _line("in broker", _moment(story.published_at_ms) or "not yet")
    if not story.state.is_final:
        _line("expires", _moment(story.expires_at_ms))
    _line("ended", _moment(story.ended_at_ms))
    _line("attempts", _describe_attempts(story))
    if story.losses:
        _line(
            "losses",
            f"its worker died {story.losses} times while it ran, {story.solo_losses} of them while it ran alone",
        )


def _round(story: Story, generation: int) -> list[str]:
    """The generation as a heading has it; nothing where the job was queued once."""
    return [] if story.generation == 1 else [f"generation {generation}"]


def _print_attempt(attempt: Attempt, its_round: Sequence[str]) -> None:
    if attempt.waited_ms is not None:
        out.print(Text(f"\n  waited {format_seconds(attempt.waited_ms / 1000)}", style="dim"))
    _head(f"attempt {attempt.number}", *its_round, attempt.outcome)
    _line("started", _moment(attempt.started_at_ms))
    latency = "" if attempt.latency_ms is None else f", latency {format_seconds(attempt.latency_ms / 1000)}"
    _line("ended", f"{_moment(attempt.ended_at_ms)}{latency}")
    _line("worker", _worker(attempt.host, attempt.worker_id))
    _line("endpoint", attempt.endpoint)
    _line("http status", None if attempt.http_status is None else str(attempt.http_status))
    _line("request id", attempt.request_id)
    _line("message", attempt.message)
    if attempt.prompt_tokens is not None and attempt.completion_tokens is not None:
        unused = "" if attempt.is_used else ", paid for but not used"
        _line("tokens", f"{_tokens(attempt.prompt_tokens, attempt.completion_tokens)}{unused}")
    if attempt.cost_nano is not None:
        _line("cost", format_cost(attempt.cost_nano))


def _print_result(result: Result) -> None:
    _head(f"result of attempt {result.number}")
    _line("finish reason", result.finish_reason or "none given")
    _line("model", result.model)
    _line(
        "tokens",
        f"{_tokens(result.prompt_tokens, result.completion_tokens)} = {format_count(result.total_tokens)}; "
        f"{format_count(result.cached_tokens)} cached, {format_count(result.reasoning_tokens)} reasoning",
    )
    _line("cost", "unknown" if result.cost_nano is None else format_cost(result.cost_nano))
    if result.is_reasoning_unclosed:
        _line("reasoning", "began and did not end: the answer is empty or part of it")


def _describe_attempts(story: Story) -> str:
    """`3 made; 1 counts towards the 6 after which it fails; queued again once`."""
    parts = [f"{format_count(story.claims)} made" if story.claims else "none yet"]
    if story.claims and not story.state.is_final:
        limit = "ANTREAN_MAX_ATTEMPTS" if story.max_attempts is None else f"the {story.max_attempts}"
        counting = "counts" if story.burnt == 1 else "count"
        number = format_count(story.burnt) if story.burnt else "none"
        parts.append(f"{number} of them {counting} towards {limit} after which it fails")
    if story.generation > 1:
        parts.append(f"queued again {'once' if story.generation == 2 else f'{story.generation - 1} times'}")
    return "; ".join(parts)


def _head(*parts: str) -> None:
    out.print(Text("\n" + " · ".join(map(printable, parts)), style="bold"))


def _line(label: str, value: str | None) -> None:
    """Prints a labelled value, whose further rows begin below its first; nothing where it is empty."""
    if value:
        out.say(f"  {label:<{_LABEL}} {value}", hang=_LABEL + 3)


def _moment(at_ms: int | None) -> str:
    return "" if at_ms is None else iso(at_ms, "milliseconds")


def _why(kind: str, http_status: int | None, request_id: str | None) -> str:
    status = "" if http_status is None else f" · HTTP {http_status}"
    return f"{kind}{status}" + ("" if request_id is None else f" · request id {request_id}")


def _worker(host: str | None, worker_id: str | None) -> str:
    return " · ".join(part for part in (host, worker_id) if part)


def _tokens(prompt: int, completion: int) -> str:
    return f"{format_count(prompt)} prompt + {format_count(completion)} completion"


def _facts(story: Story) -> dict[str, Any]:
    """The story as JSON: times as ISO 8601 in UTC, texts only when they were asked for."""
    facts = _with_times(asdict(story))
    facts["state"] = story.state.value
    facts["attempts"] = [_with_times(asdict(attempt)) for attempt in story.attempts]
    facts["result"] = None if story.result is None else _with_times(asdict(story.result))
    if story.content is None:
        del facts["content"]
    else:
        error = story.content.error
        facts["content"] = {
            "request": parse_request(story.content.request),
            "answer": story.content.answer,
            "reasoning": story.content.reasoning,
            "error": None if error is None else error.decode("utf-8", "replace"),
            "user_metadata": story.content.user_metadata,
        }
    return facts


def _with_times(facts: dict[str, Any]) -> dict[str, Any]:
    """`created_at_ms: 0` becomes `created_at: "1970-…"`; so do `…_since_ms` and `not_before_ms`.

    `cost_nano` becomes `cost_usd`.
    """
    named: dict[str, Any] = {}
    for name, value in facts.items():
        if name == "cost_nano":
            named["cost_usd"] = to_usd(value)
            continue
        is_moment = name.endswith(("_at_ms", "_since_ms")) or name == "not_before_ms"
        named[name.removesuffix("_ms") if is_moment else name] = (
            _moment(value) if is_moment and value is not None else value
        )
    return named
