from __future__ import annotations

from tests.audit.test_ledgerlevel import a_run
from tests.contract.test_ledger_executor import KEY, House, build  # noqa: F401
from tests.support.ledger import (
    claim,
    job_row,
    record,
    state,
    success,
)
from worker.cli import run_work
from worker.cli.tracking import Progress, Tracker
from worker.sources.documents import find_documents
from worker.storage.reading import iterate_outcomes


def test_T26_a_refused_key_fails_a_job_when_its_patience_is_spent(build):  # noqa: F811
    house = build(api_key="sk-wrong")
    id_ = house.put()
    seen = []
    for _ in range(8):
        seen.append(
            (house.execute(id_).value, state(house.ledger, id_), job_row(house.ledger, id_).blocked_since_ms)
        )
        if state(house.ledger, id_) == "failed":
            break
        house.again(id_)  # 3000 s pass; patience is 3600 s
    print(seen)
    assert state(house.ledger, id_) == "failed", seen


def test_T25_the_custom_ids_of_a_run_over_a_part_of_the_folder(sqlite_ledger, tmp_path):
    ledger = sqlite_ledger
    docs, prompt, settings = a_run(tmp_path, ledger)

    def run(folder):
        batch = run_work.make_run(ledger, settings, folder, prompt, "m")
        with run_work.worked_on(ledger, settings, batch):
            work = run_work.submit_run(ledger, settings, batch, find_documents(folder), prompt, "m")
            for job in claim(ledger, *set(work.open), endpoint=settings.endpoint, token=batch.id).values():
                record(ledger, success(job))
            return work

    run(docs)
    work = run(docs / "sub")
    got = [o.custom_id for o in iterate_outcomes(ledger, work.ids)]
    assert got == ["0.txt", "1.txt", "2.txt"], got


def test_T27_a_link_to_a_document_beside_it(sqlite_ledger, tmp_path):
    ledger = sqlite_ledger
    docs, prompt, settings = a_run(tmp_path, ledger)
    (docs / "sub" / "copy.txt").symlink_to(docs / "sub" / "0.txt")
    batch = run_work.make_run(ledger, settings, docs, prompt, "m")
    with run_work.worked_on(ledger, settings, batch):
        work = run_work.submit_run(ledger, settings, batch, find_documents(docs), prompt, "m")
        progress = Progress(total=len(work.ids), succeeded=work.done)
        tracker = Tracker(ledger, work.open, progress)
        for job in claim(ledger, *set(work.open), endpoint=settings.endpoint).values():
            record(ledger, success(job))
        tracker.look()
    assert tracker.is_done
    print([o.custom_id for o in iterate_outcomes(ledger, work.ids)])
    assert progress.succeeded == len(work.ids), (
        f"exit 1: {progress.succeeded} of {len(work.ids)} jobs succeeded, {progress.failed} failed"
    )
