"""Bad input: one clear sentence, an exit code, nothing half done, no job burnt."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from sqlalchemy import func, select

from tests.acceptance.test_run import ledger_of, write_documents
from tests.support.processes import Finished, Shop, SimulatorProcess, processes_under
from worker.storage.errors import NotMigrated
from worker.storage.tables import jobs

USAGE, SETTINGS, UNREACHABLE, REFUSED = 2, 3, 4, 5
LINE = '{"model":"DeepSeek-V3.1","messages":[{"role":"user","content":"Hi."}]}'


@pytest.fixture(scope="module")
def dead_port() -> int:
    """A port of this machine that refuses."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def assert_one_sentence(done: Finished, code: int, *words: str) -> None:
    assert done.code == code, done.err
    said = [line for line in done.err.splitlines() if not line.startswith("requests go to ")]
    assert said[0].startswith("antrean: "), done.err
    assert "Traceback" not in done.err + done.out
    for word in words:
        assert word in done.err


def assert_nothing_was_done(shop: Shop, simulator: SimulatorProcess) -> None:
    """No job is queued, no call was made, no process is left."""
    assert simulator.stats()["calls"] == 0
    assert not (shop.folder / "results.jsonl").exists()
    assert processes_under(shop.folder) == []
    if (Path(str(shop.settings["home"])) / "antrean.db").exists():
        ledger = ledger_of(shop)
        try:
            with ledger.read() as connection:
                assert connection.execute(select(func.count()).select_from(jobs)).scalar_one() == 0
        except NotMigrated:
            pass
        ledger.dispose()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nowhere", "-p", "prompt.md"], ["nowhere"]),
        (["run", "empty", "-p", "prompt.md"], ["empty", "no documents"]),
        (["run", "documents", "-p", "nowhere.md"], ["nowhere.md"]),
        (["run", "documents", "-p", "unknown.md"], ["unknown.md", "txet", "text"]),
        (["run", "documents", "-p", "zero.md"], ["temperature", "greater than 0"]),
        (["run", "documents", "-p", "prompt.md", "-o", "nowhere/out.jsonl"], ["nowhere"]),
        (["submit", "nowhere.jsonl"], ["nowhere.jsonl"]),
        (["submit", "documents"], ["documents", "run"]),
        (["submit", "bad.jsonl"], ["bad.jsonl", "line 2", "line 3: temperature", "line 4: messages"]),
        (["submit", "nothing.jsonl"], ["nothing.jsonl", "no requests"]),
        (["retry", "batch_x", "--failed"], ["batch_x"]),
        (["retry", "batch_x"], ["--failed"]),
        (["retry", "batch_x", "--kind", "tired"], ["tired", "timeout"]),
        (["results", "batch_x"], ["batch_x"]),
        (["status", "batch_x"], ["batch_x"]),
        (["simulate", "--fault-rate", "2"], ["fault_rate"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_input_that_cannot_be_used_is_a_sentence(
    shop: Shop, simulator: SimulatorProcess, arguments: list[str], words: list[str]
) -> None:
    write_documents(shop.folder, 3)
    (shop.folder / "empty").mkdir()
    (shop.folder / "unknown.md").write_text("Read {{ txet }} and {{ text }}")
    (shop.folder / "zero.md").write_text("---\ntemperature: 0\n---\n{{ text }}")
    (shop.folder / "nothing.jsonl").write_text("\n\n")
    (shop.folder / "bad.jsonl").write_text(
        "\n".join([LINE, "{not json", LINE[:-1] + ',"temperature":0}', '{"model":"m","messages":[]}'])
    )
    assert_one_sentence(shop.antrean(*arguments), USAGE, *words)
    assert_nothing_was_done(shop, simulator)


@pytest.mark.parametrize("command", [["run", "documents", "-p", "prompt.md"], ["submit", "requests.jsonl"]])
@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({"model": "GPT-9"}, REFUSED, ["GPT-9", "DeepSeek-V3.1"]),
        ({"api_key": "wrong"}, REFUSED, ["ANTREAN_API_KEY", "401"]),
        ({"api_key": "two words"}, SETTINGS, ["ANTREAN_API_KEY"]),
        ({"api_key_file": "/nowhere/key", "api_key": ""}, SETTINGS, ["ANTREAN_API_KEY_FILE"]),
        ({"base_url": "http://127.0.0.1:{dead}"}, UNREACHABLE, ["ANTREAN_BASE_URL", "refused"]),
        ({"base_url": "http://nobody.invalid"}, UNREACHABLE, ["ANTREAN_BASE_URL", "nobody.invalid"]),
        ({"database_url": "postgresql://a@127.0.0.1:{dead}/b"}, UNREACHABLE, ["database"]),
        ({"database_url": "mysql://a@b/c"}, SETTINGS, ["ANTREAN_DATABASE_URL"]),
        ({"home": "/proc/nowhere"}, None, ["ANTREAN_HOME"]),
        ({"concurrency": 0, "max_attempts": "x"}, SETTINGS, ["ANTREAN_CONCURRENCY", "ANTREAN_MAX_ATTEMPTS"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.simulator("--key", "k", "--latency", "0")
def test_settings_that_cannot_work_are_a_sentence(
    shop: Shop,
    simulator: SimulatorProcess,
    dead_port: int,
    command: list[str],
    settings: dict[str, object],
    code: int | None,
    words: list[str],
) -> None:
    write_documents(shop.folder, 3)
    (shop.folder / "requests.jsonl").write_text(LINE.replace('"model":"DeepSeek-V3.1",', "") + "\n")
    filled = {k: v.format(dead=dead_port) if isinstance(v, str) else v for k, v in settings.items()}
    done = shop.antrean(*command, **filled)
    assert_one_sentence(done, done.code if code is None else code, *words)
    assert done.code != 0
    assert_nothing_was_done(shop, simulator)


@pytest.mark.simulator("--latency", "0")
def test_an_unreachable_broker_is_a_sentence(shop: Shop, simulator: SimulatorProcess, dead_port: int) -> None:
    write_documents(shop.folder, 3)
    url = f"redis://127.0.0.1:{dead_port}/0"
    for command in (["run", "documents", "-p", "prompt.md"], ["worker"]):
        assert_one_sentence(shop.antrean(*command, broker_url=url), UNREACHABLE, "ANTREAN_BROKER_URL")
    assert_nothing_was_done(shop, simulator)


@pytest.mark.simulator("--latency", "0")
def test_a_worker_on_a_database_without_tables_says_what_to_do(
    shop: Shop, simulator: SimulatorProcess
) -> None:
    done = shop.antrean("worker", database_url=f"sqlite:///{shop.folder}/other.db")
    assert_one_sentence(done, UNREACHABLE, "antrean migrate")
    assert_nothing_was_done(shop, simulator)


@pytest.mark.simulator("--key", "k", "--latency", "0")
def test_check_names_every_problem_at_once(shop: Shop, dead_port: int) -> None:
    sound = shop.antrean("check", "--json")
    assert (sound.code, sound.json["ok"]) == (0, True), sound.out
    broken = shop.antrean(
        "check",
        "--json",
        api_key="wrong",
        broker_url=f"redis://127.0.0.1:{dead_port}/0",
        database_url=f"postgresql://a@127.0.0.1:{dead_port}/b",
        tpyo="1",
    )
    assert broken.code == REFUSED
    assert [one["name"] for one in broken.json["checks"] if not one["ok"]] == [
        "broker",
        "database",
        "endpoint and key",
    ]
    assert broken.json["unknown_settings"] == ["ANTREAN_TPYO"]
    assert processes_under(shop.folder) == []
