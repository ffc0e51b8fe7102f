"""The spool: paid answers on disk while the database is away, and back into the ledger of both kinds."""

from __future__ import annotations

import fcntl
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.ledger import a_claim, claim_one, put_one, record, rows, state, success
from worker.errors import Stopping
from worker.storage.engine import Ledger
from worker.storage.errors import DatabaseAway
from worker.storage.outcomes import Success, Usage
from worker.upkeep.spool import SpoolFile, Unstorable, replay_leftovers

ROOT = Path(__file__).resolve().parents[2]


def paid(id_: str = "j1", **facts: object) -> Success:
    return success(a_claim(id_), **facts)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


def leave(folder: Path, worker: str, *answers: Success) -> Path:
    """What a process that was killed leaves: its file, unlocked."""
    spool = SpoolFile(folder, worker)
    for answer in answers:
        assert spool.keep(answer)
    assert spool._fd is not None
    fcntl.flock(spool._fd, fcntl.LOCK_UN)
    return folder / f"{worker}.spool"


def test_what_was_kept_is_recorded_when_the_database_is_back(ledger: Ledger, tmp_path: Path) -> None:
    job = claim_one(ledger, put_one(ledger))
    spool = SpoolFile(tmp_path / "spool", "w1")
    assert spool.keep(success(job, raw=b"\x00\xff", reasoning="r"))
    assert (len(spool), files(tmp_path / "spool")) == (1, ["w1.spool"])
    assert spool.replay(lambda answer: record(ledger, answer)) == 1
    assert (len(spool), files(tmp_path / "spool")) == (0, [])
    assert state(ledger, job.id) == "succeeded"
    assert bytes(rows(ledger, "results")[0].raw) == b"\x00\xff"
    assert spool.keep(paid())  # and it can be used again


def test_what_a_dead_process_left_is_recorded_by_the_next(ledger: Ledger, tmp_path: Path) -> None:
    job = claim_one(ledger, put_one(ledger))
    folder = tmp_path / "spool"
    leave(folder, "w1", success(job, answer="kept"))
    assert replay_leftovers(folder, lambda answer: record(ledger, answer)) == 1
    assert [r.answer for r in rows(ledger, "results")] == ["kept"]
    assert files(folder) == []


def test_an_answer_comes_back_from_disk_as_it_went(tmp_path: Path) -> None:
    answers = [paid(raw=bytes(range(256)), reasoning=None), paid("j2", is_reasoning_unclosed=True)]
    leave(tmp_path, "w1", *answers)
    back: list[Success] = []
    replay_leftovers(tmp_path, back.append)
    assert back == answers


def test_text_that_json_cannot_hold_does_not_cost_the_answer(tmp_path: Path) -> None:
    odd = "a\ud800b\x00"
    leave(
        tmp_path,
        "w1",
        paid(answer=odd, reasoning=odd, finish_reason=odd, request_id=odd, usage=Usage(odd, 1)),
    )
    back: list[Success] = []
    assert replay_leftovers(tmp_path, back.append) == 1
    assert (back[0].raw, back[0].usage.prompt_tokens) == (b'{"choices":[]}', 1)
    assert "\ud800" not in f"{back[0].answer}{back[0].usage.model}"


def test_the_file_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    spool = SpoolFile(tmp_path, "w1")
    spool.keep(paid())
    assert replay_leftovers(tmp_path, lambda answer: pytest.fail("it is not ours")) == 0
    assert files(tmp_path) == ["w1.spool"]


def test_an_answer_outlives_the_kill_of_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; sys.path.insert(0, sys.argv[2])\n"
        "from tests.contract.test_ledger_spool import SpoolFile, paid\n"
        "SpoolFile(pathlib.Path(sys.argv[1]), 'w1').keep(paid())\n"
        "print('kept', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), str(ROOT)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "kept\n"
        assert replay_leftovers(tmp_path, lambda answer: pytest.fail("its process lives")) == 0
        process.send_signal(signal.SIGKILL)
    back: list[Success] = []
    assert replay_leftovers(tmp_path, back.append) == 1
    assert back == [paid()]


def test_a_line_cut_by_a_crash_is_dropped_and_a_whole_one_that_cannot_be_read_is_put_aside(
    tmp_path: Path,
) -> None:
    path = leave(tmp_path, "w1", paid("j1"), paid("j2"))
    whole = path.read_bytes()
    newer = whole.splitlines(keepends=True)[0].replace(b"{", b'{"tier":"of a newer version",', 1)
    path.write_bytes(b"garbage\n{}\n" + newer + whole + whole[: len(whole) // 3])
    back: list[Success] = []
    assert replay_leftovers(tmp_path, back.append) == 2
    assert [answer.job_id for answer in back] == ["j1", "j2"]
    assert files(tmp_path) == ["rejected.jsonl"]
    assert (tmp_path / "rejected.jsonl").read_bytes() == b"garbage\n{}\n" + newer
    assert (tmp_path / "rejected.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_line_is_as_older_versions_write_and_read_it(tmp_path: Path) -> None:
    line = (
        b'{"job_id":"j1","token":"t1","number":1,"generation":1,"worker_id":"w1","started_at_ms":1000000,'
        b'"ended_at_ms":1000010,"latency_ms":7,"http_status":200,"request_id":"req-1","finish_reason":"stop",'
        b'"answer":"Hello","reasoning":"r","is_reasoning_unclosed":false,"raw":"AP8=","usage":{"model":"m",'
        b'"prompt_tokens":3,"completion_tokens":4,"total_tokens":7,"cached_tokens":1,"reasoning_tokens":2}}\n'
    )
    answer = paid(raw=b"\x00\xff", reasoning="r")
    assert leave(tmp_path, "w1", answer).read_bytes() == line
    back: list[Success] = []
    assert replay_leftovers(tmp_path, back.append) == 1
    assert back == [answer]


def refuse(answer: Success) -> None:
    raise Unstorable


@pytest.mark.parametrize("is_readable", [True, False])
def test_the_file_of_a_dead_process_stays_while_its_answers_cannot_be_put_aside(
    tmp_path: Path, is_readable: bool
) -> None:
    path = leave(tmp_path, "w1", paid("j1"), paid("j2"))
    if not is_readable:
        path.write_bytes(b"garbage\n" + path.read_bytes().splitlines(keepends=True)[1])
    before = path.read_bytes()
    seen: list[str] = []

    def record(answer: Success) -> None:
        if answer.job_id == "j1":
            raise Unstorable
        seen.append(answer.job_id)

    (tmp_path / "rejected.jsonl").mkdir()  # in the way
    assert replay_leftovers(tmp_path, record) == 1
    assert (seen, path.read_bytes()) == (["j2"], before), "one line does not keep the others"
    (tmp_path / "rejected.jsonl").rmdir()
    replay_leftovers(tmp_path, record)
    assert files(tmp_path) == ["rejected.jsonl"]
    assert (tmp_path / "rejected.jsonl").read_bytes() == before.splitlines(keepends=True)[0]


def test_a_process_keeps_its_own_answer_while_it_cannot_be_put_aside(tmp_path: Path) -> None:
    spool = SpoolFile(tmp_path, "w1")
    spool.keep(paid("j1"))
    (tmp_path / "rejected.jsonl").mkdir()
    assert spool.replay(refuse) == 0
    assert (len(spool), files(tmp_path)) == (1, ["rejected.jsonl", "w1.spool"])
    spool.keep(paid("j2"))
    back: list[str] = []
    assert spool.replay(lambda answer: refuse(answer) if answer.job_id == "j1" else back.append("j2")) == 1
    assert (len(spool), back) == (1, ["j2"])
    (tmp_path / "rejected.jsonl").rmdir()
    assert spool.replay(refuse) == 1
    assert (len(spool), files(tmp_path)) == (0, ["rejected.jsonl"])


def test_what_is_put_aside_in_part_is_taken_back_and_not_put_aside_again_and_again(tmp_path: Path) -> None:
    leave(tmp_path, "w1", paid("j0"), paid("j1", raw=bytes(1 << 19)))
    (tmp_path / "rejected.jsonl").write_bytes(b"first\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, before[1]))  # what a full disk is to a file
    try:
        replay_leftovers(tmp_path, refuse)
        replay_leftovers(tmp_path, refuse)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(tmp_path) == ["rejected.jsonl", "w1.spool"]
    assert (tmp_path / "rejected.jsonl").read_bytes() == b"first\n"


def test_a_file_that_cannot_be_opened_does_not_keep_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.spool").mkdir()
    leave(tmp_path, "b", paid("j2"))
    back: list[Success] = []
    assert replay_leftovers(tmp_path, back.append) == 1
    assert files(tmp_path) == ["a.spool"]


def test_what_is_left_stays_when_the_database_goes_away_again(tmp_path: Path) -> None:
    leave(tmp_path, "w1", paid("j1"), paid("j2"))
    spool = SpoolFile(tmp_path, "w2")
    spool.keep(paid("j3"))
    spool.keep(paid("j4"))
    seen: list[str] = []

    def away_at(n: int) -> object:
        def record(answer: Success) -> None:
            if len(seen) == n:
                raise DatabaseAway("gone")
            seen.append(answer.job_id)

        return record

    with pytest.raises(DatabaseAway):
        spool.replay(away_at(1))  # type: ignore[arg-type]
    with pytest.raises(DatabaseAway):
        replay_leftovers(tmp_path, away_at(2))  # type: ignore[arg-type]
    assert seen == ["j3", "j1"]
    assert files(tmp_path) == ["w1.spool", "w2.spool"]
    assert spool.replay(seen.append) == 1
    assert replay_leftovers(tmp_path, seen.append) == 2


def test_a_file_that_its_owner_has_just_removed_is_not_taken_for_the_next_one(tmp_path: Path) -> None:
    first = leave(tmp_path, "a", paid("j1"))
    leave(tmp_path, "b", paid("j2"))
    seen: list[str] = []

    def record(answer: Success) -> None:
        seen.append(answer.job_id)
        if answer.job_id == "j1":  # meanwhile somebody else replayed both, and a new spool has the old name
            first.unlink()
            (tmp_path / "a.spool").write_bytes(b"new")

    replay_leftovers(tmp_path, record)
    assert (tmp_path / "a.spool").read_bytes() == b"new"
    assert seen == ["j1", "j2"]


def test_a_spool_that_cannot_be_written_says_so_and_recovers(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.write_text("in the way")
    spool = SpoolFile(folder, "w1")
    assert spool.is_writable
    assert not spool.keep(paid())
    assert not spool.is_writable
    assert len(spool) == 0
    spool.wait_until_writable()
    assert not spool.is_writable
    folder.unlink()
    assert spool.keep(paid())
    assert spool.is_writable


def test_a_spool_without_room_for_an_answer_is_not_writable(tmp_path: Path) -> None:
    spool = SpoolFile(tmp_path / "spool", "w1")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, before[1]))  # what a full disk is to a file
    try:
        assert not spool.keep(paid(raw=bytes(1 << 19)))
        spool.wait_until_writable()
        assert not spool.is_writable
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    spool.wait_until_writable()
    assert spool.is_writable
    assert (tmp_path / "spool" / "w1.spool").stat().st_size == 0


def test_stopping_wakes_those_who_wait_for_the_spool(tmp_path: Path) -> None:
    spool = SpoolFile(tmp_path, "w1")
    spool.stop()
    with pytest.raises(Stopping):
        spool.wait_until_writable()


def test_only_its_owner_can_read_the_spool(tmp_path: Path) -> None:
    SpoolFile(tmp_path / "spool", "w1").keep(replace(paid(), answer="private"))
    assert (tmp_path / "spool" / "w1.spool").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
