"""Use cases as a gateway calls them, on both databases: values go in, values and typed errors come back, nothing is printed.

What each move does to rows is in the tests of the storage; what a command prints, in those of the commands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from api_client.words import clean_words
from schemas.failure import FailureKind
from schemas.job import JobState
from tests.support.desk import Desk
from tests.support.ledger import a_job, claim_one, job_row, put, put_one, record, setback, state, success
from worker.clock import SystemClock
from worker.errors import InputError, InUse, NotFound
from worker.operations.batches import count_jobs, find_named_batch, find_whole_batch, list_batches
from worker.operations.cancel import CancelledBatch, CancelledJob, cancel
from worker.operations.doctor import examine
from worker.operations.give_back import give_messages_back
from worker.operations.jobs import fetch_story_of, fetch_story_of_named, list_jobs
from worker.operations.model_choice import ModelChoice
from worker.operations.pause import pause_endpoint, resume_endpoint
from worker.operations.preflight import EndpointFacts
from worker.operations.prune import ToPrune, remove, survey
from worker.operations.results import Missing, count_missing, iterate_results
from worker.operations.retry import Retried, retry
from worker.operations.run_input import open_input
from worker.operations.served import find_left_jobs, why_nobody_works
from worker.operations.status import fetch_snapshot
from worker.operations.usage import open_usage
from worker.operations.workers import list_workers
from worker.sources.documents import UnreadableDocuments
from worker.storage.batches import Batch, finish_submission, hold_batch, make_batch
from worker.storage.engine import Ledger
from worker.storage.tables import MAX_ROWS
from worker.storage.usage_sums import UsageBy


@pytest.fixture
def desk(ledger: Ledger, tmp_path: Path) -> Desk:
    return Desk(ledger, tmp_path)


@pytest.fixture(autouse=True)
def _nothing_is_printed(capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Iterator[None]:
    if "desk" in request.fixturenames:  # its database server may begin with this test, and says so in a log
        request.getfixturevalue("desk")
    capfd.readouterr()
    yield
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def now_ms() -> int:
    return SystemClock().now_ms()


def a_batch(desk: Desk, *names: str, kind: str = "submit") -> tuple[Batch, list[str]]:
    """A batch that is written down, and the ids of its jobs, which have these names."""
    batch_id = f"batch_{kind}{len(list_batches(desk.ledger, limit=100))}"
    endpoint = desk.settings.endpoint
    facts = {"kind": kind, "label": "r.jsonl", "endpoint": endpoint, "now_ms": now_ms()}
    desk.ledger.run(lambda c: make_batch(c, batch_id, idempotency_key=batch_id, **facts))
    jobs = [
        a_job(batch_id=batch_id, position=n, custom_id=name, is_bulk=True, endpoint=endpoint)
        for n, name in enumerate(names)
    ]
    known = put(desk.ledger, *jobs, now_ms=now_ms())
    desk.ledger.run(lambda c: finish_submission(c, batch_id=batch_id, now_ms=now_ms()))
    return find_named_batch(desk.ledger, batch_id), [job.id for job in known]


def claimed(desk: Desk, id_: str, token: str = "t1") -> object:
    return claim_one(desk.ledger, id_, token=token, endpoint=desk.settings.endpoint, now_ms=now_ms())


def test_a_batch_is_cancelled_in_steps_that_are_told_and_what_runs_is_asked(desk: Desk) -> None:
    batch, ids = a_batch(desk, *(f"n{n}" for n in range(MAX_ROWS + 2)))
    claimed(desk, ids[0])
    told: list[int] = []
    done = cancel(desk.ledger, batch.id, on_step=told.append)
    assert done == CancelledBatch(batch, ended=MAX_ROWS + 1, asked=1, running=1, kept=0)
    assert len(told) == 2 and told == sorted(told) and told[-1] == MAX_ROWS + 1
    again = cancel(desk.ledger, batch.id, on_step=told.append)
    assert again == CancelledBatch(batch, ended=0, asked=0, running=1, kept=0)
    assert len(told) == 2, "a step that changes nothing is not told"


def test_one_job_is_cancelled_and_what_has_ended_stays(desk: Desk) -> None:
    id_ = put_one(desk.ledger)
    first = cancel(desk.ledger, id_, on_step=pytest.fail)
    assert first == CancelledJob(id_, JobState.CANCELLED, is_ended=True, is_asked=False)
    second = cancel(desk.ledger, id_, on_step=pytest.fail)
    assert second == CancelledJob(id_, JobState.CANCELLED, is_ended=False, is_asked=False)


def test_the_beginning_of_a_batchs_id_is_enough_to_look_and_not_to_end_or_remove_it(desk: Desk) -> None:
    batch, ids = a_batch(desk, "a")
    assert find_named_batch(desk.ledger, batch.id[:-1]) == batch
    with pytest.raises(NotFound, match="no batch and no job"):
        cancel(desk.ledger, batch.id[:-1], on_step=pytest.fail)
    with pytest.raises(NotFound, match="no batch"):
        find_whole_batch(desk.ledger, batch.id[:-1])
    assert state(desk.ledger, ids[0]) == "queued"
    assert find_whole_batch(desk.ledger, batch.id) == batch


def batches_begun(desk: Desk, *ends: str) -> list[Batch]:
    facts = {"kind": "submit", "label": "r.jsonl", "endpoint": desk.settings.endpoint, "now_ms": now_ms()}
    return [
        desk.ledger.run(partial(make_batch, batch_id=f"batch_0193f0{end}", idempotency_key=None, **facts))
        for end in ends
    ]


def test_of_several_batches_that_begin_so_it_is_said_that_there_are_several_and_five_are_named(
    desk: Desk,
) -> None:
    made = batches_begun(desk, *"abcdef")
    ledger, begun = desk.ledger, "batch_0193f0"
    lines = [f"{one.id}  r.jsonl" for one in made[:5]]
    finders: dict[str, Callable[[str], object]] = {
        "status": lambda called: find_named_batch(ledger, called),
        "jobs": lambda called: list_jobs(ledger, batch=called),
        "show": lambda called: fetch_story_of(ledger, called, with_content=False),
        "show named": lambda called: fetch_story_of_named(ledger, "a", called, with_content=False),
        "usage": lambda called: open_usage(ledger, UsageBy.MODEL, since_ms=None, batch=called).__enter__(),
        "prune": lambda called: find_whole_batch(ledger, called),
        "cancel": lambda called: cancel(ledger, called, on_step=pytest.fail),
    }
    for command, find in finders.items():
        with pytest.raises(InputError) as refused:
            find(begun)
        assert refused.value.problems == [*lines, "… and more"], command
        assert isinstance(refused.value, NotFound) == (command in ("prune", "cancel"))
    assert find_named_batch(ledger, "batch_0193f0a") == made[0]
    with pytest.raises(InputError, match="several batches begin with batch_0193f0; say which:"):
        find_named_batch(ledger, begun)
    with pytest.raises(NotFound, match="there is no batch batch_0193f0a0: "):
        find_named_batch(ledger, "batch_0193f0a0")
    with pytest.raises(NotFound, match="there is no batch batch_0193f: "):
        find_named_batch(ledger, "batch_0193f")  # too short to name any


def test_what_cannot_be_taken_back_wants_the_whole_id_and_names_those_that_begin_so(desk: Desk) -> None:
    [batch] = batches_begun(desk, "a")
    with pytest.raises(NotFound, match="no batch batch_0193f0; give the whole id") as refused:
        find_whole_batch(desk.ledger, "batch_0193f0")
    assert refused.value.problems == [f"{batch.id}  r.jsonl"]
    first, second = put(
        desk.ledger,
        *(a_job(id=f"0193f0a1-{n}", endpoint=desk.settings.endpoint) for n in (1, 2)),
        now_ms=now_ms(),
    )
    with pytest.raises(NotFound, match="no batch and no job 0193f0a1; give the whole id") as of_jobs:
        cancel(desk.ledger, "0193f0a1", on_step=pytest.fail)
    assert of_jobs.value.problems == [f"{first.id}  queued", f"{second.id}  queued"]
    assert [state(desk.ledger, job.id) for job in (first, second)] == ["queued", "queued"]


def test_failed_jobs_are_queued_again_by_their_kind_and_never_one_with_a_result(desk: Desk) -> None:
    batch, ids = a_batch(desk, "a", "b", "c")
    record(desk.ledger, success(claimed(desk, ids[0])))
    record(desk.ledger, setback(claimed(desk, ids[1]), kind=FailureKind.TIMEOUT))
    record(desk.ledger, setback(claimed(desk, ids[2])))
    done = retry(desk.ledger, batch, states=[JobState.FAILED], kinds=[FailureKind.TIMEOUT])
    assert done == Retried(queued=1, is_held=False)
    assert [state(desk.ledger, id_) for id_ in ids] == ["succeeded", "queued", "failed"]
    assert retry(desk.ledger, batch, states=[JobState.FAILED], kinds=[]) == Retried(queued=1, is_held=False)


@pytest.mark.parametrize("has_open", [True, False])
def test_what_is_queued_again_of_a_held_batch_goes_on_unless_it_has_open_jobs(
    desk: Desk, has_open: bool
) -> None:
    batch, ids = a_batch(desk, "a", *(["b"] if has_open else []), kind="run")
    record(desk.ledger, setback(claimed(desk, ids[0])))
    desk.ledger.run(lambda c: hold_batch(c, batch.id, now_ms=now_ms()))
    held = find_named_batch(desk.ledger, batch.id)
    assert held.held_at_ms is not None
    assert retry(desk.ledger, held, states=[JobState.FAILED], kinds=[]) == Retried(1, is_held=has_open)
    assert (find_named_batch(desk.ledger, batch.id).held_at_ms is not None) == has_open


def test_results_come_in_the_order_of_the_input_and_what_is_missing_is_counted(desk: Desk) -> None:
    batch, ids = a_batch(desk, "a", "b", "c")
    lone = put_one(desk.ledger, custom_id="lone")
    record(desk.ledger, success(claimed(desk, ids[2], "t2")), success(claimed(desk, ids[0])))
    assert [one.custom_id for one in iterate_results(desk.ledger, batch)] == ["a", "c"]
    assert count_missing(desk.ledger, batch) == Missing(open=1, removed=0)
    assert list(iterate_results(desk.ledger, None)) == []
    assert count_missing(desk.ledger, None) == Missing(open=1, removed=0)
    record(desk.ledger, success(claim_one(desk.ledger, lone)))
    assert [one.custom_id for one in iterate_results(desk.ledger, None)] == ["lone"]


def test_a_batch_is_shown_before_it_is_removed_and_each_step_is_told(desk: Desk) -> None:
    batch, ids = a_batch(desk, "a", "b")
    what = ToPrune(batch, before_ms=0)
    for refused in (survey, remove):
        more = {"with_usage": False} if refused is remove else {}
        with pytest.raises(InUse, match="2 jobs not ended"):
            refused(desk.ledger, desk.settings, what, **more)
    for n, id_ in enumerate(ids):
        record(desk.ledger, success(claimed(desk, id_, f"t{n}")))
    found = survey(desk.ledger, desk.settings, what)
    assert (found.total.total, found.total.prompt_tokens) == (2, 6)
    assert count_jobs(desk.ledger, batch.id) == {JobState.SUCCEEDED: 2}, "a survey changes nothing"
    told: list[int] = []
    done = remove(desk.ledger, desk.settings, what, with_usage=True, on_step=told.append)
    assert (done.removed, told[-1]) == (2, 2)
    with pytest.raises(NotFound):
        find_whole_batch(desk.ledger, batch.id)


def test_a_pause_stays_as_it_is_until_it_is_ended(desk: Desk) -> None:
    endpoint = desk.settings.endpoint
    is_new, pause = pause_endpoint(desk.ledger, endpoint, "moving")
    assert is_new and pause is not None and pause.reason == "moving"
    assert pause_endpoint(desk.ledger, endpoint, "another") == (False, pause)
    assert "is paused (moving)" in (why_nobody_works(desk.ledger, desk.settings, endpoint) or "")
    assert fetch_snapshot(desk.ledger, desk.settings, None).pauses == [pause]
    assert resume_endpoint(desk.ledger, endpoint) == pause
    assert resume_endpoint(desk.ledger, endpoint) is None
    assert "no worker lives" in (why_nobody_works(desk.ledger, desk.settings, endpoint) or "")


def test_jobs_for_an_endpoint_that_no_worker_calls_are_found(desk: Desk) -> None:
    a_batch(desk, "a")
    put_one(desk.ledger, endpoint="https://other.test")
    left = find_left_jobs(desk.ledger, desk.settings)
    assert {name: (one.count, one.is_cut) for name, one in left.items()} == {"https://other.test": (1, False)}
    assert list_workers(desk.ledger) == []


def test_a_job_is_listed_and_its_story_told_by_id_and_by_name(desk: Desk) -> None:
    batch, ids = a_batch(desk, "a", "b")
    record(desk.ledger, setback(claimed(desk, ids[1])))
    assert [one.custom_id for one in list_jobs(desk.ledger, batch=batch.id)] == ["a", "b"]
    failed = list_jobs(desk.ledger, states=[JobState.FAILED], kinds=[FailureKind.SERVER_ERROR])
    assert [one.id for one in failed] == [ids[1]]
    story = fetch_story_of(desk.ledger, ids[1], with_content=False)
    assert (story.id, len(story.attempts), story.content) == (ids[1], 1, None)
    assert fetch_story_of_named(desk.ledger, "b", batch.id, with_content=False) == story
    with pytest.raises(NotFound, match="no job has the custom_id"):
        fetch_story_of_named(desk.ledger, "c", None, with_content=False)


def test_a_list_of_jobs_of_an_unknown_batch_is_refused_before_anything_is_read_from_it(desk: Desk) -> None:
    with pytest.raises(NotFound, match="no batch"):
        list_jobs(desk.ledger, batch="batch_unknown")


def test_usage_is_summed_by_name_for_the_batch_that_is_called_so(desk: Desk) -> None:
    batch, ids = a_batch(desk, "a")
    record(desk.ledger, success(claimed(desk, ids[0])))
    with open_usage(desk.ledger, UsageBy.CUSTOM, since_ms=None, batch=batch.id[:-1]) as found:
        assert found.batch_id == batch.id
        assert [(one.key, one.total_tokens) for one in found.groups] == [("a", 7)]
    with (
        pytest.raises(NotFound, match="no batch"),
        open_usage(desk.ledger, UsageBy.MODEL, since_ms=None, batch="batch_unknown"),
    ):
        pytest.fail("it is refused before anything is read")


def test_the_doctor_says_what_nobody_will_take_and_nothing_of_a_ledger_that_is_well(desk: Desk) -> None:
    batch, _ = a_batch(desk, "a")
    found = examine(desk.ledger, desk.settings)
    assert ([one.name for one in found.findings], found.is_repairable) == (["unserved"], False)
    cancel(desk.ledger, batch.id, on_step=lambda _: None)
    assert examine(desk.ledger, desk.settings).findings == []


def test_messages_are_not_given_back_without_a_broker(desk: Desk) -> None:
    with pytest.raises(InputError, match="the name of a queue"):
        give_messages_back(desk.ledger, desk.settings, "two\nlines")
    with pytest.raises(InputError, match="does not run"):
        give_messages_back(desk.ledger, desk.settings, "theirs")


def test_what_is_left_out_of_a_folder_and_doubts_about_its_model_come_back_before_documents_are_checked(
    desk: Desk,
) -> None:
    desk.write(".hidden.txt", "no document")
    (desk.documents.parent / "p.md").write_text("---\ntemperature: 0\n---\n{{ text }}")
    doubts: list[str] = []
    given = open_input(
        desk.documents,
        desk.documents.parent / "p.md",
        output=Path("-"),
        settings=desk.settings,
        skips_unreadable=False,
    )
    with given as found:
        assert [one.name for one in found.left_out] == [".hidden.txt"]
        with pytest.raises(InputError, match="temperature"):
            found.check(desk.settings, ModelChoice("m", EndpointFacts(("another",)), doubts.append))
    assert len(doubts) == 1 and "has no m" in clean_words(doubts[0])
    assert list_batches(desk.ledger, limit=1) == []


@pytest.mark.parametrize("skips", [False, True])
def test_documents_that_cannot_be_read_are_an_error_of_their_own_or_are_left_out(
    desk: Desk, skips: bool
) -> None:
    (desk.documents / "odd.txt").write_bytes(b"\xff\xfe\xfa")
    given = open_input(
        desk.documents,
        desk.documents.parent / "p.md",
        output=Path("-"),
        settings=desk.settings,
        skips_unreadable=skips,
    )
    if skips:
        with given as found:
            assert [one.name for one in found.left_out] == ["odd.txt"]
        return
    with pytest.raises(UnreadableDocuments) as raised, given:
        pytest.fail("it is refused before anything is read from it")
    assert "--" not in str(raised.value), "which option helps, the command line knows"


def test_an_odd_name_of_a_job_changes_nothing(desk: Desk) -> None:
    id_ = put_one(desk.ledger)
    before = job_row(desk.ledger, id_)
    for name in ("", "\x00", "batch_req_", "%"):
        with pytest.raises(NotFound):
            cancel(desk.ledger, name, on_step=pytest.fail)
    assert job_row(desk.ledger, id_) == before
