"""Two endpoints in `antrean.toml`, as somebody types `check`, `submit` and `run`."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.acceptance.test_run import result_lines, write_documents
from tests.support.processes import Shop, SimulatorProcess, processes_under

MODEL = "DeepSeek-V3.1"


@pytest.fixture
def west() -> Iterator[SimulatorProcess]:
    process = SimulatorProcess("--latency", "0.05", "--key", "west-is-a-secret", "--model", "m-west")
    yield process
    process.close()


@pytest.fixture
def two(shop: Shop, simulator: SimulatorProcess, west: SimulatorProcess) -> Shop:
    """The shop, where two tables stand for its address and its key."""
    for name in ("base_url", "api_key"):
        del shop.settings[name]
    (shop.folder / ".env").write_text("WEST_API_KEY=west-is-a-secret\n")
    (shop.folder / "antrean.toml").write_text(
        f'[endpoints.east]\nbase_url = "{simulator.url}"\nmodels = ["{MODEL}"]\nweight = 3\n'
        f'[endpoints.west]\nbase_url = "{west.url}"\napi_key_env = "WEST_API_KEY"\nmodels = ["m-*"]\n'
    )
    return shop


def requests_go_to(simulator: SimulatorProcess, west: SimulatorProcess) -> str:
    return (
        f"requests go to 2 endpoints: east ({simulator.url}/v1/chat/completions, for {MODEL}), "
        f"west ({west.url}/v1/chat/completions, for m-*)"
    )


def first_line(said: str) -> str:
    """The first line, also where a narrow terminal has broken it."""
    return " ".join(said.split())


@pytest.mark.simulator("--latency", "0.05", "--model", MODEL)
def test_check_submit_and_run_say_first_where_requests_go(
    two: Shop, simulator: SimulatorProcess, west: SimulatorProcess
) -> None:
    where = requests_go_to(simulator, west)
    checked = two.antrean("check")
    assert checked.code == 0, checked.out + checked.err
    assert first_line(checked.err).startswith(where)
    assert f"endpoint east: {simulator.url} runs {MODEL};" in " ".join(checked.out.split())
    assert f"endpoint west: {west.url} runs m-west;" in " ".join(checked.out.split())

    line = {"model": "m-east", "messages": [{"role": "user", "content": "Hello"}]}
    (two.folder / "r.jsonl").write_text(json.dumps({**line, "model": "nobody"}) + "\n")
    refused = two.antrean("submit", "r.jsonl")
    assert refused.code == 5
    assert first_line(refused.err).startswith(where)
    assert f"no endpoint serves nobody: east serves {MODEL}; west serves m-*" in " ".join(refused.err.split())
    write_documents(two.folder, 6)
    run = two.antrean("run", "documents", "-p", "prompt.md", "-o", "out.jsonl", "--model", MODEL)
    assert run.code == 0, run.err
    assert first_line(run.err).startswith(where)
    assert len(result_lines(two.folder / "out.jsonl")) == 6
    assert len(simulator.calls()) == 6

    (two.folder / "r.jsonl").write_text(json.dumps({**line, "model": "m-west"}) + "\n")
    queued = two.antrean("submit", "r.jsonl", "--json")
    assert queued.code == 0, queued.err
    assert first_line(queued.err).startswith(where)
    assert queued.json["endpoint"] == simulator.url
    assert "secret" not in checked.out + checked.err + queued.err + run.err
    assert processes_under(two.folder) == []


@pytest.mark.simulator("--latency", "0.05", "--model", MODEL)
def test_an_endpoint_that_is_away_is_named_and_passed_by(
    two: Shop, simulator: SimulatorProcess, west: SimulatorProcess
) -> None:
    west.kill()
    checked = two.antrean("check")
    assert checked.code == 4
    assert f"no endpoint west: {west.url} does not answer" in " ".join(checked.out.split())
    line = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
    (two.folder / "r.jsonl").write_text(json.dumps(line) + "\n")
    queued = two.antrean("submit", "r.jsonl")
    assert queued.code == 0, queued.err
    assert f"west is passed by until it answers: {west.url} does not answer" in " ".join(queued.err.split())
    (two.folder / "r.jsonl").write_text(json.dumps({**line, "model": "m-west"}) + "\n")
    assert two.antrean("submit", "r.jsonl").code == 4


@pytest.mark.full
@pytest.mark.simulator("--latency", "0.05", "--model", MODEL)
def test_a_run_loses_its_patience_with_the_endpoint_that_alone_serves_a_model_and_goes_on_once_it_is_back(
    two: Shop, simulator: SimulatorProcess, west: SimulatorProcess
) -> None:
    models = [MODEL, "m-west", MODEL, "m-west"]
    (two.folder / "r.jsonl").write_text(
        "".join(
            json.dumps({"model": model, "messages": [{"role": "user", "content": f"Hello {n}"}]}) + "\n"
            for n, model in enumerate(models)
        )
    )
    west.kill()
    ended = two.antrean("run", "r.jsonl", "-o", "out.jsonl", "--no-check", "--patience", "2")
    assert ended.code == 6, ended.err
    assert "no job has ended for 2 s (unreachable: connection refused" in " ".join(ended.err.split())
    assert len(simulator.calls()) == 2
    west.restart()
    done = two.antrean("run", "r.jsonl", "-o", "out.jsonl")
    assert done.code == 0, done.err
    assert len(result_lines(two.folder / "out.jsonl")) == 4
    assert (len(simulator.calls()), len(west.calls())) == (2, 2)


def test_one_address_in_the_environment_means_that_one(two: Shop, simulator: SimulatorProcess) -> None:
    (two.folder / "r.jsonl").write_text(
        '{"model": "m", "messages": [{"role": "user", "content": "Hello"}]}\n'
    )
    queued = two.antrean("submit", "r.jsonl", "--no-check", base_url=simulator.url)
    assert queued.code == 0, queued.err
    assert first_line(queued.err).startswith(
        f"requests go to {simulator.url}/v1/chat/completions; 2 endpoints of antrean.toml are not used, because "
        "ANTREAN_BASE_URL is set"
    )


def test_bad_tables_are_told_all_at_once_before_anything_is_written(two: Shop) -> None:
    (two.folder / "antrean.toml").write_text(
        '[endpoints.east]\nurl = "http://x"\n[endpoints.west]\nbase_url = "http://w"\nweight = -1\n'
    )
    for command in (
        ["check"],
        ["run", "documents", "-p", "p.md"],
        ["submit", "r.jsonl"],
        ["worker"],
        ["limits"],
    ):
        ended = two.antrean(*command)
        said = " ".join((ended.out + ended.err).split())
        assert ended.code == 3, said
        assert "[endpoints.east]: url is unknown" in said
        assert "[endpoints.east]: base_url is missing" in said
        assert "[endpoints.west]: weight must be greater than 0" in said
    assert not (two.folder / ".antrean").exists()
