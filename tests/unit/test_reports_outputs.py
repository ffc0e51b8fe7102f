"""What results may be written over: the batch's own results, and nothing that cost money or work."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from schemas.failure import FailureKind
from tests.support.ledger import ENDPOINT, NOW, a_job, claim, put, record, rows, setback, success
from worker.errors import InputError
from worker.ids import new_id
from worker.reports.batchlines import write_results
from worker.reports.growing import GrowingResults
from worker.reports.outputs import LONE, Inputs, Output, count_by_owner
from worker.settings import load_settings
from worker.storage.batches import finish_submission, make_batch
from worker.storage.engine import Ledger, open_ledger
from worker.storage.migrating import migrate
from worker.storage.pruning import OfAge, prune
from worker.storage.reading import iterate_batch_outcomes, iterate_lone_outcomes
from worker.storage.unwanted import remove_wants

LATER = NOW + 1_000


def a_batch(ledger: Ledger, id_: str, *names: str, fails: bool = False) -> None:
    """A finished batch with a job for each name; jobs of one name are shared by all batches."""
    ledger.run(
        partial(
            make_batch,
            batch_id=id_,
            kind="submit",
            label=f"{id_} × p.md",
            endpoint=ENDPOINT,
            idempotency_key=id_,
            now_ms=NOW,
        )
    )
    new = put(
        ledger,
        *(
            a_job(batch_id=id_, position=i, custom_id=name, idempotency_key=name, is_bulk=True)
            for i, name in enumerate(names, start=1)
        ),
    )
    ledger.run(partial(finish_submission, batch_id=id_, now_ms=NOW))
    for job in claim(ledger, *(one.id for one in new if one.is_new), token=id_).values():
        record(ledger, setback(job, kind=FailureKind.REJECTED) if fails else success(job))


def write(ledger: Ledger, id_: str, path: Path) -> None:
    write_results(iterate_batch_outcomes(ledger, id_), path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def output(path: Path, *, inputs: Inputs | None = None, **how: bool) -> Output:
    return Output(path, inputs or Inputs(), **how)


@pytest.mark.parametrize("is_forced", [False, True])
@pytest.mark.parametrize("how", ["itself", "symlink", "hard link", "another way"])
def test_an_input_is_never_overwritten_by_whatever_name(path: Path, how: str, is_forced: bool) -> None:
    prompt = path.with_name("p.md")
    prompt.write_text("Sum up: {{ text }}")
    if how == "symlink":
        path.symlink_to(prompt)
    elif how == "hard link":
        path.hardlink_to(prompt)
    named = {"itself": prompt, "another way": path.parent / "." / ".." / path.parent.name / "p.md"}
    one = output(named.get(how, path), inputs=Inputs(files=[(prompt, "the prompt")]), is_forced=is_forced)
    with pytest.raises(InputError, match="is the prompt, which is never overwritten: name another"):
        one.check_file()
    assert prompt.read_text() == "Sum up: {{ text }}"


@pytest.mark.parametrize("is_forced", [False, True])
def test_a_document_is_never_overwritten_found_or_only_in_its_folder(tmp_path: Path, is_forced: bool) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in ("a.txt", "new.txt"):
        (docs / name).write_text("words")
    outside = tmp_path / "outside.txt"
    outside.write_text("words")
    (docs / "link.txt").symlink_to(outside)
    inputs = Inputs(documents=[docs / "a.txt", docs / "link.txt"], folders=[docs])
    for one in (docs / "a.txt", docs / "link.txt", docs / "new.txt", outside):
        with pytest.raises(InputError, match="one of the documents, which are never overwritten"):
            output(one, inputs=inputs, is_forced=is_forced).check_file()


def test_a_file_of_antreans_own_is_never_overwritten(tmp_path: Path) -> None:
    home = tmp_path / ".antrean"
    home.mkdir()
    (home / "stack.lock").touch()
    for name in ("stack.lock", "antrean.db"):
        (home / name).open("a").close()
        with pytest.raises(InputError, match="antrean's own"):
            output(home / name, inputs=Inputs(home=home), is_forced=True).check_file()
    output(home / "new.jsonl", inputs=Inputs(home=home)).check_file()


@pytest.mark.parametrize("holds", ["my notes\n", '{"custom_id":"a","body":{}}\n', "\x00\xff"])
def test_what_is_not_results_is_overwritten_with_force_only(path: Path, holds: str) -> None:
    path.write_text(holds)
    with pytest.raises(InputError, match=r"not a file of results.*--force"):
        output(path).check_file()
    output(path, is_forced=True).check_file()


@pytest.mark.parametrize("kind", ["nothing", "an empty file", "a device", "a pipe", "a dangling link"])
def test_what_holds_nothing_is_written_to(path: Path, kind: str, sqlite_ledger: Ledger) -> None:
    if kind == "an empty file":
        path.touch()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a dangling link":
        path.symlink_to(path.with_name("elsewhere.jsonl"))
    one = output(Path(os.devnull) if kind == "a device" else path, is_named=False)
    one.check_file()
    assert one.check_results(sqlite_ledger, "b1") is None


def test_results_of_the_same_batch_are_replaced_without_a_word(path: Path, sqlite_ledger: Ledger) -> None:
    a_batch(sqlite_ledger, "b1", "a", "b", "c")
    write(sqlite_ledger, "b1", path)
    one = output(path, is_named=False)
    one.check_file()
    assert one.check_results(sqlite_ledger, "b1") is None
    holding = count_by_owner(sqlite_ledger, path, "b1")
    assert (holding.own, holding.lost, dict(holding.others)) == (3, 0, {})


def test_a_document_that_was_edited_or_removed_since_makes_them_nobody_elses(
    path: Path, sqlite_ledger: Ledger
) -> None:
    a_batch(sqlite_ledger, "b1", "a", "b")
    write(sqlite_ledger, "b1", path)
    [gone, _] = rows(sqlite_ledger, "jobs")
    sqlite_ledger.run(partial(remove_wants, batch_id="b1", places=[(gone.position, gone.id)], now_ms=NOW))
    assert output(path, is_named=False).check_results(sqlite_ledger, "b1") is None
    assert count_by_owner(sqlite_ledger, path, "b1").unwanted == 1


@pytest.mark.parametrize("shared", [(), ("a", "b")], ids=["other jobs", "the same jobs"])
def test_results_of_another_batch_are_not_replaced_under_the_default_name(
    path: Path, sqlite_ledger: Ledger, shared: tuple[str, ...]
) -> None:
    a_batch(sqlite_ledger, "b1", "a", "b", "c")
    a_batch(sqlite_ledger, "b2", *shared, "d")
    write(sqlite_ledger, "b1", path)
    with pytest.raises(InputError, match=r"holds the results of b1 \(b1 × p.md\): .*-o.*--force"):
        output(path, is_named=False).check_results(sqlite_ledger, "b2")
    with pytest.raises(InputError, match="the results of b1"):  # of a batch that is not made yet
        output(path, is_named=False).check_results(sqlite_ledger, None)
    assert output(path, is_named=False, is_forced=True).check_results(sqlite_ledger, "b2") is None
    remark = output(path).check_results(sqlite_ledger, "b2")
    assert remark is not None
    assert "`antrean results b1` writes them again" in remark


def test_results_of_lone_jobs_are_theirs_alone(path: Path, sqlite_ledger: Ledger) -> None:
    (lone,) = put(sqlite_ledger, a_job(id=new_id()))
    for job in claim(sqlite_ledger, lone.id, token="t").values():
        record(sqlite_ledger, success(job))
    write_results(iterate_lone_outcomes(sqlite_ledger), path)
    assert output(path, is_named=False).check_results(sqlite_ledger, LONE) is None
    a_batch(sqlite_ledger, "b1", "a")
    for batch_id in ("b1", None):
        with pytest.raises(InputError, match="holds the results of jobs of no batch"):
            output(path, is_named=False).check_results(sqlite_ledger, batch_id)
    remark = output(path).check_results(sqlite_ledger, "b1")
    assert remark is not None
    assert "`antrean results --lone` writes them again" in remark


def test_the_same_jobs_under_the_names_of_another_batch_are_its_results(
    path: Path, sqlite_ledger: Ledger
) -> None:
    a_batch(sqlite_ledger, "whole", "a", "b")
    a_batch(sqlite_ledger, "part", "b")
    sqlite_ledger.run(lambda c: c.exec_driver_sql("UPDATE wants SET custom_id = 'sub/b'"))
    write(sqlite_ledger, "part", path)
    assert count_by_owner(sqlite_ledger, path, "whole").others == {"part": 1}


@pytest.mark.parametrize("is_named", [False, True])
def test_results_that_were_pruned_since_are_replaced_with_force_only(
    path: Path, sqlite_ledger: Ledger, is_named: bool
) -> None:
    """`antrean results BATCH -o FILE` after a prune wrote 200 lines over 1,000."""
    a_batch(sqlite_ledger, "b1", "a", "b")
    write(sqlite_ledger, "b1", path)
    sqlite_ledger.run(
        lambda c: c.exec_driver_sql("UPDATE jobs SET ended_at_ms = ended_at_ms * 9 WHERE position = 2")
    )
    prune(sqlite_ledger, OfAge(LATER), with_usage=False)
    with pytest.raises(InputError, match=r"holds 1 result that this ledger does not have.*--force"):
        output(path, is_named=is_named).check_results(sqlite_ledger, "b1")
    output(path, is_named=is_named, is_forced=True).check_results(sqlite_ledger, "b1")


def test_failures_that_were_pruned_cost_nothing(path: Path, sqlite_ledger: Ledger) -> None:
    a_batch(sqlite_ledger, "b1", "a", "b", fails=True)
    write(sqlite_ledger, "b1", path)
    assert prune(sqlite_ledger, OfAge(LATER), with_usage=False).removed == 2
    assert output(path, is_named=False).check_results(sqlite_ledger, "b1") is None


def test_results_of_another_ledger_stay_but_those_of_a_simulation_cost_nothing(
    path: Path, sqlite_ledger: Ledger
) -> None:
    simulation = open_ledger(load_settings(home=path.with_name("simulation"), _env_file=None))
    migrate(simulation)
    a_batch(simulation, "b1", "a")
    write(simulation, "b1", path)
    with pytest.raises(InputError, match="does not have"):
        output(path).check_results(sqlite_ledger, None)
    one = output(path, is_named=False)
    remark = one.check_results(sqlite_ledger, None, simulation=lambda: simulation)
    assert remark == f"{path} held the results of a simulation"
    simulation.dispose()


def test_lines_that_somebody_added_are_more_than_results(path: Path, sqlite_ledger: Ledger) -> None:
    a_batch(sqlite_ledger, "b1", "a")
    write(sqlite_ledger, "b1", path)
    with path.open("a") as file:
        file.write("my remark\n")
    one = output(path)
    one.check_file()
    with pytest.raises(InputError, match="more than results"):
        one.check_results(sqlite_ledger, "b1")


def test_a_last_line_that_was_cut_off_is_no_line(path: Path, sqlite_ledger: Ledger) -> None:
    a_batch(sqlite_ledger, "b1", "a", "b")
    write(sqlite_ledger, "b1", path)
    lines = path.read_bytes()
    path.write_bytes(lines[: lines.index(b"\n") + 30])
    assert output(path, is_named=False).check_results(sqlite_ledger, "b1") is None


def test_names_and_ids_of_any_form_are_recognised(path: Path, sqlite_ledger: Ledger) -> None:
    a_batch(sqlite_ledger, "b1")
    odd = [('my-own-"id\\', 'a "quoted" \\ näme\n'), ("0193f0a1-0000-7000-8000-000000000001", "x")]
    put(sqlite_ledger, *(a_job(id=id_, batch_id="b1", custom_id=name) for id_, name in odd))
    put(sqlite_ledger, a_job(batch_id="b1", source_key="docs/half \udcff name"))
    for job in claim(sqlite_ledger, *(row.id for row in rows(sqlite_ledger, "jobs"))).values():
        record(sqlite_ledger, success(job))
    write(sqlite_ledger, "b1", path)
    holding = count_by_owner(sqlite_ledger, path, "b1")
    assert (holding.own, holding.lost, holding.unwanted, holding.is_foreign) == (3, 0, 0, False)


def test_what_came_to_have_the_name_while_the_results_were_made_stays(
    path: Path, sqlite_ledger: Ledger
) -> None:
    """Two runs of two prompts at once: each found no file at its start."""
    a_batch(sqlite_ledger, "b1", "a")
    a_batch(sqlite_ledger, "b2", "b")
    one = output(path, is_named=False)
    one.check_file()
    one.check_results(sqlite_ledger, None)
    one.belong_to("b2")
    growing = GrowingResults(
        sqlite_ledger, [row.id for row in rows(sqlite_ledger, "jobs", batch_id="b2")], path, output=one
    )
    growing.advance(lambda _: False)
    write(sqlite_ledger, "b1", path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"the results of b1.*`antrean results b2 -o FILE` writes them"):
        growing.finish()
    growing.close()
    assert path.read_bytes() == before
    part = path.with_name("results.jsonl.part")
    assert growing.part == part
    assert part.read_text().count("\n") == 1, "what was made is there as well"


def test_a_part_of_another_batch_or_an_input_is_not_grown_in(path: Path, sqlite_ledger: Ledger) -> None:
    """`antrean run results.jsonl.part -o results.jsonl` emptied its input."""
    a_batch(sqlite_ledger, "b1", "a")
    a_batch(sqlite_ledger, "b2", "b")
    part = path.with_name("results.jsonl.part")
    write(sqlite_ledger, "b1", part)
    before = part.read_bytes()
    for batch, inputs in (("b2", Inputs()), ("b1", Inputs(files=[(part, "the document")]))):
        one = output(path, inputs=inputs)
        one.check_results(sqlite_ledger, batch)
        ids = [row.id for row in rows(sqlite_ledger, "jobs", batch_id=batch)]
        growing = GrowingResults(sqlite_ledger, ids, path, output=one)
        growing.advance(lambda _: False)
        assert growing.part is None, "a hidden one, which nobody is told of"
        growing.close()
        assert part.read_bytes() == before
    one = output(path)
    one.check_results(sqlite_ledger, "b1")
    assert one.may_grow_in(part)


def test_a_run_does_not_begin_under_the_default_name_that_another_batch_writes_just_now(
    path: Path, sqlite_ledger: Ledger
) -> None:
    a_batch(sqlite_ledger, "b1", "a")
    a_batch(sqlite_ledger, "b2", "b")
    ids = [row.id for row in rows(sqlite_ledger, "jobs", batch_id="b1")]
    growing = GrowingResults(sqlite_ledger, ids, path)
    growing.advance(lambda _: False)
    with pytest.raises(InputError, match=r"is being written by a run of b1 .*: name another file with -o"):
        output(path, is_named=False).check_results(sqlite_ledger, None)
    assert output(path, is_named=False).check_results(sqlite_ledger, "b1") is None, "the same command twice"
    assert output(path).check_results(sqlite_ledger, "b2") is None
    growing.close()
    assert output(path, is_named=False).check_results(sqlite_ledger, None) is None, "it was stopped"
