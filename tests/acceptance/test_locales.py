"""A locale without UTF-8, as of cron or a bare container: the same names, the same jobs, the same files."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.processes import Finished, Shop, SimulatorProcess, environment, wait_until

ASCII = {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
UTF_8 = {"PYTHONUTF8": "1"}
NAMES = ["b.txt", "é.txt", "ü/資料.txt"]


def command(shop: Shop, *args: str) -> list[str]:
    return [sys.executable, "-P", "-m", "worker.cli", *args]


def antrean(shop: Shop, locale: dict[str, str], *args: str) -> Finished:
    done = subprocess.run(
        command(shop, *args),
        cwd=shop.folder,
        env=environment(shop.settings) | locale,
        capture_output=True,
        timeout=90,
        check=False,
    )
    return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def odd(shop: Shop) -> Shop:
    """Documents, a prompt, a home and a `.env` whose names are no ASCII."""
    for name in NAMES:
        (shop.folder / "dök" / name).parent.mkdir(parents=True, exist_ok=True)
        (shop.folder / "dök" / name).write_text(f"Über {name}", encoding="utf-8")
    (shop.folder / "prömpt.md").write_text("Süm {{ path }}: {{ text }}", encoding="utf-8")
    (shop.folder / ".env").write_text("ANTREAN_HOME=höme\n", encoding="utf-8")
    del shop.settings["home"]
    return shop


def lines(shop: Shop, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (shop.folder / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("locales", [(ASCII, UTF_8), (UTF_8, ASCII)], ids=["ASCII first", "UTF-8 first"])
def test_the_same_folder_is_the_same_run_in_every_locale(
    odd: Shop, simulator: SimulatorProcess, locales: tuple[dict[str, str], dict[str, str]]
) -> None:
    run = ("run", "dök", "-p", "prömpt.md", "--json", "-o")
    first = antrean(odd, locales[0], *run, "erst-ö.jsonl")
    assert first.code == 0, first.err
    second = antrean(odd, locales[1], *run, "zweit-ö.jsonl")
    assert second.code == 0, second.err
    assert second.json["batch_id"] == first.json["batch_id"]
    assert (second.json["already_done"], second.json["output"]) == (3, "zweit-ö.jsonl")
    assert lines(odd, "erst-ö.jsonl") == lines(odd, "zweit-ö.jsonl")
    assert [line["custom_id"] for line in lines(odd, "erst-ö.jsonl")] == NAMES
    assert simulator.stats()["calls"] == 3
    assert {path.name for path in odd.folder.iterdir()} >= {"höme", "erst-ö.jsonl", "zweit-ö.jsonl"}
    for locale in locales:
        (batch,) = json.loads(antrean(odd, locale, "batches", "--json").out)["batches"]
        assert batch["label"] == "dök × prömpt.md"
        again = antrean(odd, locale, "results", batch["batch_id"], "-o", "dök/é.txt", "--force")
        assert again.code == 2, "an input is never written over"
    assert (odd.folder / "dök" / "é.txt").read_text(encoding="utf-8") == "Über é.txt"


def test_a_batch_line_and_a_table_have_the_same_bytes_in_every_locale(odd: Shop) -> None:
    body = {"model": "DeepSeek-V3.1", "messages": [{"role": "user", "content": "Größe?"}]}
    (odd.folder / "anfragen-ö.jsonl").write_text(
        json.dumps({"custom_id": "größe", "body": body}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    said = [antrean(odd, locale, "run", "anfragen-ö.jsonl", "-o", "r.jsonl") for locale in (ASCII, UTF_8)]
    assert [done.code for done in said] == [0, 0], said
    assert [line["custom_id"] for line in lines(odd, "r.jsonl")] == ["größe"]
    tables = [antrean(odd, locale, "jobs", "--csv").out for locale in (ASCII, UTF_8)]
    assert tables[0] == tables[1]
    assert ",größe," in tables[0]


def test_what_is_missing_is_named_with_its_characters(odd: Shop) -> None:
    for locale, shown in ((ASCII, "n\\u00f6.md"), (UTF_8, "nö.md")):
        done = antrean(odd, locale, "run", "dök", "-p", "nö.md")
        assert (done.code, f"No such prompt: {shown}" in done.err) == (2, True), done.err


@pytest.mark.full
def test_a_keeper_of_one_locale_starts_the_worker_of_a_command_of_another(odd: Shop) -> None:
    log = odd.folder / "up.log"
    with log.open("wb") as output:
        up = subprocess.Popen(
            command(odd, "up", "--no-flower"),
            cwd=odd.folder,
            env=environment(odd.settings) | ASCII,
            stdout=output,
            stderr=output,
        )
    odd.started.append(up)
    wait_until(lambda: b"ready: 1 worker" in log.read_bytes(), within_s=40, what="the stack runs")
    done = antrean(odd, UTF_8 | {"NAME_OF_MINE": "ü"}, "run", "dök", "-p", "prömpt.md", "-o", "r.jsonl")
    assert done.code == 0, done.err
    assert [line["custom_id"] for line in lines(odd, "r.jsonl")] == NAMES
    up.terminate()
    assert up.wait(30) == 0
