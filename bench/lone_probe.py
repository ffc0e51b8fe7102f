"""Queues lone jobs one after the other and waits for each: `python -m bench.lone_probe COUNT SPACING OUT`.

OUT gets the seconds from `delay` to the stored result, a line a job.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from pathlib import Path

from bench.processes import BenchError
from bench.requests_file import make_body
from worker.settings import load_settings
from worker.storage.engine import open_ledger
from worker.tasks import complete_chat

_QUERY = "SELECT 1 FROM jobs WHERE id = ? AND ended_at_ms IS NOT NULL"
_LOOK_EVERY_S = 0.002
_PATIENCE_S = 60.0


def main(count: int, spacing_s: float, out: Path) -> None:
    """Probes, the first one unmeasured: it opens the connections."""
    # The driver itself: five hundred looks a second through SQLAlchemy would be a load of their own.
    look = sqlite3.connect(str(open_ledger(load_settings()).engine.url.database), isolation_level=None)
    begun: dict[str, float] = {}
    waits: dict[str, float] = {}
    next_s = time.perf_counter()
    queued, first = 0, ""
    while queued <= count or begun:
        now_s = time.perf_counter()
        if queued <= count and now_s >= next_s:
            job_id = complete_chat.delay(make_body(queued)).id
            first = first or job_id
            begun[job_id] = now_s
            queued += 1
            next_s = now_s + spacing_s
        ended = [job_id for job_id in begun if look.execute(_QUERY, (job_id,)).fetchone()]
        now_s = time.perf_counter()
        waits.update({job_id: now_s - begun[job_id] for job_id in ended})
        for job_id in ended:
            del begun[job_id]
        if any(now_s - begun_s > _PATIENCE_S for begun_s in begun.values()):
            raise BenchError(f"a lone job did not end within {_PATIENCE_S:g} s")
        time.sleep(_LOOK_EVERY_S)
    out.write_text("".join(f"{wait}\n" for job_id, wait in waits.items() if job_id != first))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
