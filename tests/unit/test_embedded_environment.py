"""What a child inherits means the same in its folder as in that of the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.settings import load_settings
from worker.stack.environment import inherited_environment
from worker.stack.plan import make_plan


def test_relative_paths_of_a_command_reach_its_workers_as_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {
        "REQUESTS_CA_BUNDLE": "cert.pem",
        "SSL_CERT_FILE": "/etc/ssl/cert.pem",
        "SSL_CERT_DIR": "",
        "PGPASSFILE": "../pgpass",
        "PGSSLROOTCERT": "system",
        "PYTHONPATH": "lib:/opt/lib",
    }
    env = inherited_environment(given)
    assert env["REQUESTS_CA_BUNDLE"] == str(tmp_path / "cert.pem")
    assert env["SSL_CERT_FILE"] == "/etc/ssl/cert.pem"
    assert env["SSL_CERT_DIR"] == ""
    assert env["PGPASSFILE"] == str(tmp_path.parent / "pgpass")
    assert env["PGSSLROOTCERT"] == "system"
    assert env["PYTHONPATH"].split(":")[1:] == [str(tmp_path / "lib"), "/opt/lib"]
    plan = make_plan(load_settings(_env_file=None), given, workers=1, flower_port=None, health_interval_s=0)
    assert plan.workers[0].env["REQUESTS_CA_BUNDLE"] == env["REQUESTS_CA_BUNDLE"]


def test_settings_of_ours_are_not_inherited_in_any_case_of_their_letters() -> None:
    env = inherited_environment({"ANTREAN_API_KEY": "k", "antrean_api_key": "k", "ANTHROPIC_API_KEY": "a"})
    assert set(env) == {"ANTHROPIC_API_KEY", "PYTHONPATH"}
