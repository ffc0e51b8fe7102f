"""Which parts there are, when they are started again, and what is told of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from worker.settings import Settings, load_settings
from worker.stack.figures import Figures, describe_health, parse_figures
from worker.stack.kept import decide_restart_delay_s, describe_status
from worker.stack.plan import Plan, make_plan


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def settings(**given: Any) -> Settings:
    return load_settings(home="/srv/antrean", api_key="sk-secret", _env_file=None, **given)


def plan(workers: int = 2, flower_port: int | None = 5555, **given: Any) -> Plan:
    environ = {"PATH": "/bin", "ANTREAN_MODLE": "x", "PYTHONPATH": "/else"}
    return make_plan(
        settings(**given), environ, workers=workers, flower_port=flower_port, health_interval_s=30.0
    )


def test_a_part_that_keeps_dying_is_started_ever_more_slowly_up_to_half_a_minute() -> None:
    delays = [decide_restart_delay_s(failures) for failures in range(9)]
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert decide_restart_delay_s(100_000) == 30


def test_an_end_is_told_in_words() -> None:
    assert describe_status(3) == "exit code 3"
    assert describe_status(-9) == "signal 9, SIGKILL"
    assert describe_status(None) == "it could not be started"


def test_each_worker_has_a_name_of_its_own_and_all_settings() -> None:
    made = plan(workers=2, concurrency=7)
    assert [recipe.name for recipe in made.workers] == ["worker1", "worker2"]
    assert [recipe.argv[-2:] for recipe in made.workers] == [("-n", "w1@%h"), ("-n", "w2@%h")]
    env = made.workers[0].env
    assert (env["ANTREAN_CONCURRENCY"], env["ANTREAN_IN_STACK"], env["PATH"]) == ("7", "1", "/bin")
    assert env["PYTHONPATH"].endswith("/else")
    assert "ANTREAN_MODLE" not in env


def test_no_secret_is_in_an_argument_and_no_key_goes_to_those_who_only_look_on() -> None:
    made = plan(database_url="postgresql://u:pw-secret@h/d")
    assert made.flower is not None
    for recipe in (*made.workers, made.flower, made.figures):
        assert "secret" not in f"{recipe.argv} {recipe!r}"
    assert "sk-secret" in made.workers[0].env.values()
    assert "sk-secret" not in {*made.flower.env.values(), *made.figures.env.values()}
    assert "pw-secret" in f"{made.figures.env}", "it counts jobs"
    assert "pw-secret" not in f"{made.flower.env}"


def test_a_worker_is_given_more_than_its_grace_to_end() -> None:
    assert plan(grace_s=12).workers[0].stop_limit_s >= 12 + 2


def test_the_ready_line_says_where_flower_is_and_how_to_get_in() -> None:
    assert plan(workers=1, flower_port=None).ready_sentence == "ready: 1 worker"
    assert plan().ready_sentence == (
        "ready: 2 workers, Flower on http://127.0.0.1:5555 "
        "(user antrean, password in /srv/antrean/flower.password)"
    )
    said = plan(flower_password="pw-secret", flower_address="0.0.0.0").ready_sentence
    assert said.endswith("http://127.0.0.1:5555 (user antrean, password in ANTREAN_FLOWER_PASSWORD)")


def test_a_health_line_counts_what_is_going_on() -> None:
    figures = Figures(counts={"running": 32, "queued": 1204, "failed": 12}, jobs_per_minute=41.3)
    assert (
        describe_health(figures, ready=2, wanted=2)
        == "2 workers · 32 in flight · 1,204 queued · 12 failed · 41 jobs/min"
    )
    waiting = Figures(counts={"waiting": 3}, trouble="quota: no money left")
    assert (
        describe_health(waiting, ready=0, wanted=1)
        == "0 of 1 worker · 0 in flight · 0 queued · 3 waiting · 0 failed · waiting for quota: no money left"
    )


def test_a_line_that_holds_no_figures_is_not_taken_for_some() -> None:
    line = '{"workers": [[7, 1000]], "away": {"broker": "gone"}, "trouble": null}'
    assert parse_figures(line) == Figures(workers=frozenset({(7, 1000)}), away={"broker": "gone"})
    for other in ("", "Traceback", "{}", '{"workers": 3, "away": {}, "trouble": null}', "[]", "null"):
        assert parse_figures(other) is None


def test_no_key_of_a_table_goes_to_those_who_only_look_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAST_API_KEY", "sk-secret-variable")
    tables = {
        "east": {"base_url": "http://east", "api_key_env": "EAST_API_KEY"},
        "west": {"base_url": "http://west", "api_keys": ["sk-secret-one", "sk-secret-two"]},
    }
    told = load_settings(home="/srv/antrean", endpoint_tables=tables, _env_file=None)
    environ = {"EAST_API_KEY": "sk-secret-variable"}
    made = make_plan(told, environ, workers=1, flower_port=5555, health_interval_s=30.0)
    assert made.flower is not None
    worker = " ".join(made.workers[0].env.values())
    assert all(f"sk-secret-{name}" in worker for name in ("variable", "one", "two"))
    for recipe in (made.flower, made.figures):
        assert "secret" not in str(recipe.env)
        assert "http://west" in recipe.env["ANTREAN_ENDPOINT_TABLES"]
