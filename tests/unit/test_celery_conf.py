"""Celery's configuration where getting it wrong would be silent."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from worker.celery import build_conf
from worker.errors import ExitCode


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
