"""`antrean prune`, at a terminal and from a program: nothing goes that nobody has seen and agreed to."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from tests.acceptance.test_commands_more import status, submit
from tests.support.processes import Shop, SimulatorProcess, end, environment, wait_until
from worker.errors import ExitCode


def at_terminal(shop: Shop, *args: str, types: bytes | None) -> tuple[int, str]:
    """How a command ends whose three streams are a terminal, where somebody types when asked; and what it showed.

    None is Ctrl-C. Styles are left out of what it showed.
    """
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "worker.cli", *args],
        cwd=shop.folder,
        env=environment(shop.settings),
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    shop.started.append(process)
    os.close(follower)
    shown = b""
    is_typed = False
    while chunk := _read(leader):
        shown += chunk
        if not is_typed and b"[y/N]" in shown:
            is_typed = True
            if types is None:
                process.send_signal(signal.SIGINT)
            else:
                os.write(leader, types)
    os.close(leader)
    plain = re.sub(rb"\x1b\[[0-9;]*m", b"", shown).decode(errors="replace")
    return process.wait(30), plain.replace("\r\n", "\n")


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 4096)
    except OSError:  # Linux says so when the last one who had the other end is gone
        return b""


def ended(shop: Shop, count: int = 3, name: str = "requests.jsonl") -> str:
    """A batch of jobs that have ended, without a worker."""
    batch = submit(shop, count, name)
    assert shop.antrean("cancel", batch).code == 0
    return batch


def jobs(shop: Shop, batch: str) -> int:
    found = shop.antrean("status", batch, "--json")
    return found.json["total"] if found.code == 0 else 0


def test_what_ended_is_pruned_and_what_waits_stays(plant: Shop) -> None:
    done, waiting = ended(plant, 6), submit(plant, 3, "later.jsonl")
    young = plant.antrean("prune", "--older-than", "1h", "--yes", "--json")
    assert (young.code, young.json["jobs"], young.json["removed"]) == (0, 0, True)
    ages_ago = plant.antrean("prune", "--older-than", "999999w", "--yes", "--json")
    assert (ages_ago.code, ages_ago.json["before"]) == (0, "1970-01-01T00:00:00.000+00:00")
    before = datetime.fromisoformat(young.json["before"])  # times are ISO 8601 in UTC, as everywhere
    assert before.utcoffset() == timedelta(0)
    assert timedelta(hours=1) <= datetime.now(UTC) - before < timedelta(hours=1, minutes=5)
    looked = plant.antrean("prune", "--all", "--dry-run")
    assert "6 jobs would be removed: 6 cancelled" in looked.out
    assert looked.out.endswith("nothing was removed\n")
    seen = plant.antrean("prune", "--all", "--dry-run", "--json").json
    [share] = seen["batches"]
    assert (seen["removed"], seen["jobs"], seen["spared"]) == (False, 6, 0)
    assert (share["batch_id"], share["jobs"], share["label"]) == (done, {"cancelled": 6}, "requests.jsonl")
    assert share["size_bytes"] == seen["size_bytes"] > 6 * 50
    assert jobs(plant, done) == 6
    assert plant.antrean("prune", "--all", "--yes").out == "6 jobs removed\n"
    assert plant.antrean("status", done).code == int(ExitCode.USAGE), "the batch went with its jobs"
    assert status(plant, waiting)["jobs"]["queued"] == 3


def test_at_a_terminal_it_shows_what_it_is_and_removes_it_only_when_told_to(
    shop: Shop, simulator: SimulatorProcess
) -> None:
    (shop.folder / "docs").mkdir()
    (shop.folder / "docs" / "a.txt").write_text("Words.")
    (shop.folder / "p.md").write_text("Sum up: {{ text }}")
    paid = shop.antrean("run", "docs", "-p", "p.md", "--json").json
    batch = paid["batch_id"]
    for answer in (b"n\n", b"NO\n", b"\n", b"\x04", None):
        code, shown = at_terminal(shop, "prune", batch, types=answer)
        # Who says no has what he wanted, and is told so in one plain sentence; only Ctrl-C is an interruption.
        assert code == (ExitCode.INTERRUPTED if answer is None else ExitCode.FAILED_JOBS), shown
        assert [shown.endswith("\nnothing was removed\n"), shown.count("Abort")] == [True, 0], shown
        assert jobs(shop, batch) == 1
    code, shown = at_terminal(shop, "prune", batch, types=b"maybe\n\xff\xe9\nn\n")
    assert (code, shown.count("type y for yes, or n for no\nRemove them? [y/N] ")) == (1, 2), shown
    asked = shown.index("Remove them?")
    assert 0 < shown.index("would need --force to write over a file of their results") < asked, shown
    tokens = f"{paid['prompt_tokens']} prompt + {paid['completion_tokens']} completion tokens"
    assert f"{batch}\n  docs × p.md · 1 succeeded · " in shown
    assert "1 job would be removed: 1 succeeded · " in shown
    assert tokens in shown
    assert "called, and paid for, again" in shown
    code, shown = at_terminal(shop, "prune", "--all", "--with-usage", types=b"y\n")
    assert (code, "1 job removed" in shown, "forget their tokens" in shown) == (0, True, True)
    assert jobs(shop, batch) == 0
    code, shown = at_terminal(shop, "prune", "--all", types=b"")
    assert (code, "[y/N]" in shown) == (0, False), "of nothing nobody is asked"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "say what to remove: --older-than 30d"),
        (("--older-than", "soon"), "such as 90m"),
        (("--older-than", "0d", "--yes"), "use --all if you mean that"),
        (("--older-than", "00m", "--dry-run"), "use --all if you mean that"),
        (("--older-than", "1d", "--all", "--yes"), "do not go together"),
        (("BATCH", "--older-than", "1d", "--yes"), "whatever its age"),
        (("BATCH", "--all", "--yes"), "whatever its age"),
        (("--all",), "there is no terminal to ask for a yes: --yes removes without a question"),
        (("BATCH",), "there is no terminal to ask"),
        (("BATCH", "--json"), "there is no terminal to ask"),
        (("BATC", "--yes"), "there is no batch"),
    ],
)
def test_what_is_not_spelt_out_removes_nothing(shop: Shop, args: Sequence[str], says: str) -> None:
    batch = ended(shop)
    named = [batch if arg == "BATCH" else batch[:20] if arg == "BATC" else arg for arg in args]
    refused = shop.antrean("prune", *named)
    assert (refused.code, refused.out) == (int(ExitCode.USAGE), ""), refused.err
    assert says in refused.err
    assert jobs(shop, batch) == 3


def test_one_batch_goes_and_no_other(shop: Shop) -> None:
    one, other = ended(shop), ended(shop, 2, "other.jsonl")
    done = shop.antrean("prune", one, "--yes", "--json")
    assert (done.code, done.json) == (
        0,
        {"batch_id": one, "jobs": 3, "spared": 0, "open": 0, "removed": True},
    )
    assert (jobs(shop, one), jobs(shop, other)) == (0, 2)
    assert submit(shop, 3) != one, "the same file is another batch by now"


def test_an_unfinished_batch_goes_only_as_far_as_it_has_ended_and_where_it_is_spelt_out(shop: Shop) -> None:
    batch = submit(shop, 3)
    refused = shop.antrean("prune", batch, "--yes")
    assert refused.code == int(ExitCode.USAGE)
    assert f"{batch} has 3 jobs not ended: `antrean cancel {batch}` ends them" in refused.err
    assert "--even-unfinished" in refused.err
    kept = shop.antrean("prune", batch, "--even-unfinished", "--yes")
    assert (kept.code, kept.out, "3 jobs stay: they have not ended" in kept.err) == (
        0,
        "0 jobs removed\n",
        True,
    )
    assert status(shop, batch)["jobs"]["queued"] == 3


@pytest.mark.simulator("--latency", "0.5")
def test_a_run_that_goes_on_is_not_pruned_whatever_is_said(shop: Shop, simulator: SimulatorProcess) -> None:
    (shop.folder / "docs").mkdir()
    for i in range(8):
        (shop.folder / "docs" / f"{i}.txt").write_text(f"Words {i}.")
    (shop.folder / "p.md").write_text("Sum up: {{ text }}")
    running = shop.begin("worker.cli", "run", "docs", "-p", "p.md", concurrency=1, grace_s=1)
    wait_until(lambda: simulator.stats()["paid"] >= 1, within_s=30, what="a document is done")
    simulator.set_faults(rate_hang=1.0)  # so that it does not end by itself
    batch = shop.antrean("batches", "--json").json["batches"][0]["batch_id"]
    refused = shop.antrean("prune", batch, "--even-unfinished", "--yes")
    assert (refused.code, f"{batch} has a live run" in refused.err) == (int(ExitCode.USAGE), True)
    spared = shop.antrean("prune", "--all", "--even-unfinished", "--yes", "--json").json
    assert (spared["jobs"], spared["spared"] > 0) == (0, True)
    code, _ = end(running, signal.SIGINT)
    assert code == 130
    stopped = shop.antrean("prune", batch, "--yes")
    assert (stopped.code, "not ended" in stopped.err) == (int(ExitCode.USAGE), True), "it can go on"
    gone = shop.antrean("prune", batch, "--even-unfinished", "--yes", "--json").json
    assert (gone["jobs"], gone["jobs"] + gone["open"]) == (simulator.stats()["paid"], 8)
    assert shop.antrean("status", batch, "--json").json["total"] == gone["open"]
