"""Celery's configuration where getting it wrong would be silent."""

from __future__ import annotations

import os
import shelve
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from celery.apps.beat import Beat
from celery.beat import Service

from worker.celery import app, build_conf
from worker.errors import ExitCode

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def folder_without_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_tls_broker_must_show_a_certificate_that_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTREAN_BROKER_URL", "rediss://queue:6379/0")
    assert build_conf()["broker_use_ssl"] == {"ssl_cert_reqs": ssl.CERT_REQUIRED}


def test_a_plain_broker_speaks_no_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTREAN_BROKER_URL", "redis://queue:6379/0")
    assert not build_conf()["broker_use_ssl"]


def test_settings_that_cannot_be_used_end_celery_with_a_sentence_and_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANTREAN_CONCURRENCY", "0")
    with pytest.raises(SystemExit) as ended:
        build_conf()
    assert ended.value.code == ExitCode.SETTINGS
    assert "ANTREAN_CONCURRENCY" in capsys.readouterr().err


class Planted:
    """Its pickle makes a folder, as the pickle of a stranger would do anything."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("ran",)


def test_beat_runs_nothing_that_lies_in_the_current_folder() -> None:
    with shelve.open("celerybeat-schedule") as planted:
        planted["entries"] = Planted()
    beat = Beat(app=app)
    Service(app, schedule_filename=beat.schedule, scheduler_cls=beat.scheduler_cls).get_scheduler()
    assert not Path("ran").exists()
    Service(app, schedule_filename=beat.schedule).get_scheduler()  # the one that Celery would take
    assert Path("ran").exists()


def test_nothing_is_imported_from_the_current_folder() -> None:
    """Of a folder that somebody else filled, or that has a `requests.py` of its own."""
    script = """
import sys
from pathlib import Path
before = set(sys.modules)
from worker.celery import app
app.loader.import_default_modules()
print(*{name.partition(".")[0] for name in set(sys.modules) - before if name.isidentifier()})
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-c", script]
    names = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split()
    assert "requests" in names
    for name in names:
        Path(f"{name}.py").write_text(f"open({f'RAN_{name}'!r}, 'w')\nraise SystemExit('planted')\n")
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, list(Path().glob("RAN_*"))) == (0, []), done.stderr
