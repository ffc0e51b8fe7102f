"""What a worker and a producer import: in a new interpreter, as they do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# structlog imports Rich where it is installed, and goes on without: so only its absence shows who needs it.
_WITHOUT_RICH = """
import sys

class WithoutRich:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "rich":
            raise ImportError(name)

sys.meta_path.insert(0, WithoutRich())
"""


@pytest.mark.parametrize(
    "does",
    [
        "import worker.celery, worker.tasks",
        "from worker.tasks import complete_chat",
        "from worker.startup import say; say('this process cannot start')",
    ],
)
def test_a_worker_and_a_producer_need_no_rich(does: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{_WITHOUT_RICH}\n{does}\nassert 'rich' not in sys.modules"],
        env={"PYTHONPATH": ":".join(sys.path), "ANTREAN_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
