"""A program with a Celery app of its own imports our task: nothing of it changes, and nothing said to it is ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

THEIRS = {
    "CELERY_BROKER_URL": "redis://their-broker:1/1",
    "CELERY_BROKER_READ_URL": "redis://their-broker:1/2",
    "CELERY_RESULT_BACKEND": "redis://their-results:1/1",
    "CELERY_CONFIG_MODULE": "their.missing.settings",
    "CELERY_LOADER": "default",
}


def run(script: str, folder: Path, **environ: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd()), **environ},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def test_importing_our_task_changes_nothing_of_the_process(tmp_path: Path) -> None:
    script = """
import gc, json, logging, os, signal, sys
import celery
from celery import signals
from celery.worker.control import Panel
theirs = celery.Celery("theirs", broker="memory://")
facts = lambda: [dict(os.environ), {n: str(signal.getsignal(n)) for n in signal.valid_signals()}, gc.get_threshold(),
                 gc.get_freeze_count(), str(logging.getLogger().handlers), logging.getLogger().level,
                 len(signals.setup_logging.receivers), celery.current_app.main, sys.getswitchinterval(), os.getcwd()]
before = facts()
from worker.tasks import complete_chat
complete_chat.s({"messages": []})
after = facts()
@celery.shared_task
def theirs_alone(): ...
print(json.dumps({"changed": [[str(a), str(b)] for a, b in zip(before, after) if a != b],
                  "current": celery.current_app.main, "shared": theirs_alone.app.main,
                  "home": os.path.exists(".antrean")}))
"""
    found = run(script, tmp_path)
    assert found == {"changed": [], "current": "theirs", "shared": "theirs", "home": False}


def test_what_is_said_to_another_app_in_the_environment_is_not_said_to_ours(tmp_path: Path) -> None:
    script = """
import json
from worker.tasks import app
print(json.dumps([app.connection().as_uri(), app.connection_for_read().as_uri(), app.connection_for_write().as_uri(),
                  type(app.backend).__name__, app.conf.task_serializer]))
"""
    found = run(script, tmp_path, **THEIRS, ANTREAN_BROKER_URL="redis://our-broker:1/3")
    assert found == [*["redis://:**@our-broker:1/3"] * 3, "LedgerOnly", "json"]


@pytest.mark.parametrize("app", ["worker", "worker.celery:app", "theirs"])
def test_flower_of_our_app_reads_our_settings_and_that_of_another_does_not(tmp_path: Path, app: str) -> None:
    (tmp_path / "theirs.py").write_text(
        "import celery\nimport worker.tasks\napp = celery.Celery('theirs', broker='memory://')\n"
    )
    script = f"""
import json, os, sys
import flower.command
flower.command.apply_env_options = lambda: (print(json.dumps(os.environ.get("FLOWER_CONF"))), sys.stdout.flush(), os._exit(0))
from celery.bin.celery import main
sys.argv = ["celery", "-A", {app!r}, "flower"]
sys.path.insert(0, "")
main()
"""
    ours = str(Path("worker/flower/config.py").absolute())
    assert run(script, tmp_path) == (None if app == "theirs" else ours)
