from __future__ import annotations

import os

from tests.contract.test_ledger_executor import House, build  # noqa: F401
from tests.support.ledger import (
    ENDPOINT,
    claim_one,
    put_one,
    state,
    success,
)
from worker.clock import SystemClock
from worker.storage.group import GroupWriter
from worker.upkeep.heart import Heart
from worker.upkeep.presence import Presence
from worker.upkeep.spool import REJECTED, SpoolFile


def test_T18_a_spool_of_another_ledger_in_the_same_home(ledger, sqlite_ledger, tmp_path):
    """Job called by a worker on ledger 1, killed with its answer spooled; a worker on ledger 2 (same home) starts."""
    id_ = put_one(ledger)
    job = claim_one(ledger, id_, worker="dead", token="dead:1")
    folder = tmp_path / "spool"
    s = SpoolFile(folder, "dead")
    s.keep(success(job, worker="dead"))
    os.close(s._fd)  # kill -9
    clock = SystemClock()

    def beat(on, name):
        w = GroupWriter(on, worker_id=name, endpoint=ENDPOINT, clock=clock, window_s=0.0)
        w.start()
        p = Presence(tmp_path / "workers", name)
        p.begin()
        Heart(
            on,
            w,
            SpoolFile(folder, name),
            p,
            clock,
            endpoint=ENDPOINT,
            slots=4,
            lease_s=2,
            beat_s=0.3,
            spool_folder=folder,
            max_solo_losses=3,
        ).beat()
        w.stop(5)
        p.end()

    beat(sqlite_ledger, "two")
    beat(ledger, "one")
    assert state(ledger, id_) == "succeeded", (
        f"{state(ledger, id_)}; in {REJECTED}: {(folder / REJECTED).exists()}"
    )


def test_T14_the_same_file_with_another_model_joins_the_same_batch(tmp_path):
    import json
    import subprocess
    import sys

    f = tmp_path / "r.jsonl"
    f.write_text(
        "".join(
            json.dumps({"custom_id": f"c{n}", "body": {"messages": [{"role": "user", "content": "x"}]}})
            + "\n"
            for n in range(3)
        )
    )
    env = {
        **os.environ,
        "ANTREAN_HOME": str(tmp_path / "h"),
        "ANTREAN_BASE_URL": "http://127.0.0.1:1",
        "PYTHONPATH": os.getcwd(),
    }

    def submit(model):
        out = subprocess.run(
            [
                sys.executable,
                "-P",
                "-m",
                "worker.cli",
                "submit",
                str(f),
                "--no-check",
                "--model",
                model,
                "--json",
            ],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert out.returncode == 0, out.stderr
        return json.loads(out.stdout)

    one, two = submit("a"), submit("b")
    print(one, two)
    assert one["batch_id"] != two["batch_id"], two
