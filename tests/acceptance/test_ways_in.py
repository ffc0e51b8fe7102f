"""The ways in with the real command: pipes, addresses and lists of models of other shapes, and ids that are taken."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from schemas.chat import encode_decoded
from tests.acceptance.test_producers import REQUEST, python
from tests.acceptance.test_run import ledger_of, result_lines, write_documents
from tests.support.endpoints import Endpoint, api
from tests.support.processes import Finished, Shop, environment
from worker.clock import SystemClock
from worker.intake.submit import identify
from worker.storage.batches import make_batch
from worker.storage.intake import NewJob, insert_jobs
from worker.storage.migrating import migrate
from worker.storage.tables import batches, jobs

LINE = {"custom_id": "c", "body": {"messages": [{"role": "user", "content": "x"}]}}
ANTREAN = shlex.join([sys.executable, "-P", "-m", "worker.cli"])


@pytest.fixture
def away(folder: Path) -> Iterator[Shop]:
    """Commands with SQLite, for an endpoint that nobody asks."""
    shop = Shop(folder, {"home": folder / ".antrean", "base_url": "http://127.0.0.1:1", "api_key": "k"})
    yield shop
    shop.close()


def bash(shop: Shop, script: str) -> list[Finished]:
    """How each command of the script ended; `antrean` is ours."""
    found = []
    for line in script.strip().splitlines():
        done = subprocess.run(
            ["bash", "-c", f'antrean() {{ {ANTREAN} "$@"; }}; {line.strip()}'],
            cwd=shop.folder,
            env=environment(shop.settings),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        found.append(Finished(done.returncode, done.stdout.decode(), done.stderr.decode()))
    return found


@pytest.mark.full
def test_a_file_is_the_same_batch_whichever_way_its_lines_come(away: Shop) -> None:
    lines = [json.dumps({**LINE, "custom_id": f"r{n}"}) for n in range(2)]
    (away.folder / "requests.jsonl").write_text("\n".join(lines))
    ways = bash(
        away,
        """
        antrean submit <(cat requests.jsonl) --no-check --model m --json
        cat requests.jsonl | antrean submit /dev/stdin --no-check --model m --json
        antrean submit /dev/stdin --no-check --model m --json < requests.jsonl
        antrean submit /dev/fd/3 --no-check --model m --json 3< requests.jsonl
        mkfifo f; cat requests.jsonl > f & antrean submit f --no-check --model m --json
        antrean submit - --no-check --model m --json < requests.jsonl
        antrean submit requests.jsonl --no-check --model m --json
        """,
    )
    assert [way.code for way in ways] == [0] * 7, ways
    assert [(way.json["total"], way.json["new"]) for way in ways] == [(2, 2)] + [(2, 0)] * 6
    assert len({way.json["batch_id"] for way in ways}) == 1
    ledger = ledger_of(away)
    with ledger.read() as connection:
        assert connection.execute(select(batches.c.label)).scalars().all() == ["a pipe"]
    ledger.dispose()


def test_an_input_without_requests_is_an_error_whichever_way_it_comes(away: Shop) -> None:
    ways = bash(
        away,
        """
        antrean submit <(true) --no-check
        true | antrean submit /dev/stdin --no-check
        antrean submit - --no-check < /dev/null
        antrean submit - --no-check <&-
        antrean submit <(echo '{"bad') --no-check
        """,
    )
    assert [way.code for way in ways] == [2] * 5, ways
    assert all("\nantrean: " in f"\n{way.err}" and "/tmp" not in way.err for way in ways), ways
    assert ["holds no requests" in way.err for way in ways] == [True] * 4 + [False]


def test_the_model_of_lines_that_name_none_is_part_of_the_batch(away: Shop) -> None:
    (away.folder / "r.jsonl").write_text(json.dumps(LINE) + "\n")

    def submit(model: str) -> Any:
        return away.antrean("submit", "r.jsonl", "--no-check", "--model", model, "--json").json

    one, two, again = submit("a"), submit("b"), submit("a")
    assert (one["new"], two["new"], again["new"]) == (1, 1, 0)
    assert one["batch_id"] == again["batch_id"] != two["batch_id"]
    named = {**LINE, "body": {**LINE["body"], "model": "m"}}  # type: ignore[dict-item]
    (away.folder / "r.jsonl").write_text(json.dumps(named) + "\n")
    assert submit("a")["batch_id"] == submit("b")["batch_id"]


@pytest.mark.parametrize("names_model", [pytest.param(True, marks=pytest.mark.full), False])
def test_what_an_earlier_version_submitted_is_not_paid_for_again(away: Shop, names_model: bool) -> None:
    line = {**LINE, "body": {**({"model": "a"} if names_model else {}), **LINE["body"]}}  # type: ignore[dict-item]
    raw = json.dumps(line).encode() + b"\n"
    (away.folder / "r.jsonl").write_bytes(raw)
    assert away.antrean("migrate").code == 0
    ledger, endpoint = ledger_of(away), "http://127.0.0.1:1"
    migrate(ledger)
    key = identify("submit", hashlib.sha256(raw).hexdigest(), endpoint)
    body, request_hash = encode_decoded({"model": "a", **LINE["body"]})  # type: ignore[dict-item]
    now_ms = SystemClock().now_ms()
    with ledger.write() as connection:
        batch = make_batch(
            connection,
            "batch_earlier",
            kind="submit",
            label="r.jsonl",
            endpoint=endpoint,
            idempotency_key=key,
            now_ms=now_ms,
        )
        job = NewJob("j", body, "a", request_hash, endpoint, f"{batch.id}:{1:09}:{request_hash[:12]}")
        insert_jobs(connection, [replace(job, batch_id=batch.id, position=1, is_bulk=True)], now_ms=now_ms)
    same = away.antrean("submit", "r.jsonl", "--no-check", "--model", "a", "--json").json
    assert (same["batch_id"], same["new"], same["already_known"]) == ("batch_earlier", 0, 1)
    other = away.antrean("submit", "r.jsonl", "--no-check", "--model", "b", "--json").json
    assert (other["batch_id"] == "batch_earlier", other["new"]) == ((True, 0) if names_model else (False, 1))
    ledger.dispose()


def test_a_file_that_is_still_written_to_is_not_submitted(away: Shop) -> None:
    """Its last lines would belong to no batch."""
    slow = "import sys, worker.sources.jsonl as j, worker.operations.request_file as s; from pathlib import Path\n"
    slow += "real = s.check_requests\n"
    slow += "def check(path, **how):\n found = real(path, **how); path.open('a').write('\\n'); return found\n"
    slow += "s.check_requests = check\nfrom worker.cli.main import main; sys.argv[0] = 'antrean'; main()\n"
    (away.folder / "r.jsonl").write_text(json.dumps(LINE) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", slow, "submit", "r.jsonl", "--no-check", "--model", "m"],
        cwd=away.folder,
        env=environment(away.settings),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, b"changed while it was read" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("root", "end"),
    [
        pytest.param("/api/paas/v4", "/api/paas/v4/", marks=pytest.mark.full),
        ("/openai/deployments/m1", "/openai/deployments/m1?api-version=1"),
    ],
)
def test_an_endpoint_of_another_version_is_checked_and_worked_with_where_it_is(
    away: Shop, root: str, end: str
) -> None:
    endpoint = Endpoint(api(root))
    write_documents(away.folder, 2)
    away.settings["base_url"] = endpoint.url + end
    checked = away.antrean("check", "--json")
    assert checked.code == 0, checked.out
    assert f"{endpoint.url}{root}/chat/completions" in checked.out
    assert endpoint.paid() == 0
    done = away.antrean("run", "documents", "-p", "prompt.md", "--json")
    assert (done.code, done.json["succeeded"], endpoint.paid()) == (0, 2, 2), done.err
    asked = {target for _, target, body in endpoint.requests if body}
    assert asked == {f"{root}/chat/completions{'?api-version=1' if '?' in end else ''}"}
    endpoint.close()


def test_a_wrong_path_is_named_at_once_by_each_command(away: Shop) -> None:
    endpoint = Endpoint(api("/api/paas/v4"))
    write_documents(away.folder, 1)
    (away.folder / "r.jsonl").write_text(json.dumps(LINE) + "\n")
    away.settings |= {"base_url": f"{endpoint.url}/api/paas/v4/v1", "model": "m1"}
    for command in (["check"], ["run", "documents", "-p", "prompt.md"], ["submit", "r.jsonl"]):
        done = away.antrean(*command)
        assert done.code == 4, done.err
        assert (
            f"nothing that takes requests is at {endpoint.url}/api/paas/v4/v1/chat/completions"
            in done.out + done.err
        )
        assert f"set it to {endpoint.url}/api/paas/v4)" in done.out + done.err
    assert endpoint.paid() == 0
    endpoint.close()


def test_an_address_that_cannot_be_used_is_a_sentence_of_every_command(away: Shop) -> None:
    write_documents(away.folder, 1)
    (away.folder / "r.jsonl").write_text(json.dumps(LINE) + "\n")
    commands = [
        ["check"],
        ["worker"],
        ["run", "documents", "-p", "prompt.md"],
        ["submit", "r.jsonl"],
        ["models"],
    ]
    for command in commands:
        done = away.antrean(*command, base_url="http://h:99999/v1")
        assert done.code == 3, (command, done.err)
        assert "ANTREAN_BASE_URL" in done.out + done.err
        assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "models",
    [(429, {"error": "slow down"}), pytest.param((200, ["models/m1", "other"]), marks=pytest.mark.full)],
    ids=str,
)
def test_an_odd_list_of_models_warns_and_does_not_stop_a_named_model(away: Shop, models: Any) -> None:
    endpoint = Endpoint(api("/v1", models=models))
    write_documents(away.folder, 1)
    away.settings["base_url"] = endpoint.url
    done = away.antrean("run", "documents", "-p", "prompt.md", "--model", "m1")
    assert done.code == 0, done.err
    assert len([line for line in done.err.splitlines() if "going on" in line]) == 1
    assert len(result_lines(away.folder / "results.jsonl")) == endpoint.paid() == 1
    endpoint.close()


def test_run_asks_nothing_where_it_is_told_not_to(away: Shop) -> None:
    endpoint = Endpoint(api("/v1", models=(401, {})))
    write_documents(away.folder, 1)
    away.settings["base_url"] = endpoint.url
    assert away.antrean("run", "documents", "-p", "prompt.md", "--model", "m1").code == 5
    done = away.antrean("run", "documents", "-p", "prompt.md", "--model", "m1", "--no-check")
    assert done.code == 0, done.err
    assert [body.get("model") for _, target, body in endpoint.requests if "chat" in target] == ["m1"]
    unnamed = away.antrean("run", "documents", "-p", "prompt.md", "--no-check")
    assert (unnamed.code, "--model" in unnamed.err) == (2, True)
    endpoint.close()


def test_a_key_file_that_only_one_process_can_read_is_a_sentence(away: Shop) -> None:
    write_documents(away.folder, 1)
    away.settings["api_key"] = ""
    (done,) = bash(
        away, "ANTREAN_API_KEY_FILE=<(echo k) antrean run documents -p prompt.md --model m --no-check"
    )
    assert (done.code, "ANTREAN_API_KEY_FILE" in done.err) == (3, True), done.err


def test_a_task_id_or_a_custom_id_that_another_request_has_is_refused_where_it_is_made(
    away: Shop, valkey: Any, valkey_path: str
) -> None:
    other = {**REQUEST, "seed": 7}
    script = f"""
import json
from schemas.chat import InvalidRequest
from worker.tasks import complete_chat
said = []
def ask(request, task_id, **options):
    try:
        said.append(complete_chat.apply_async(args=[request], kwargs=options, task_id=task_id).id)
    except InvalidRequest as exc:
        said.append(exc.errors)
ask({REQUEST!r}, "one")
ask({other!r}, "one")
ask({REQUEST!r}, "one")
ask({REQUEST!r}, "two", custom_id="c", batch="b")
ask({other!r}, "three", custom_id="c", batch="b")
ask({REQUEST!r}, "four", custom_id="c", batch="b")
ask({other!r}, "five", custom_id="c")
try:
    complete_chat.apply_async([{REQUEST!r}], custom_id="c", batch="b", idempotency_key="k")
except InvalidRequest as exc:
    said.append([problem.partition(":")[0] for problem in exc.errors])
print(json.dumps(said))
"""
    away.settings["broker_url"] = f"redis+socket://{valkey_path}?virtual_host=0"
    one, taken, again, two, named, four, five, misplaced = python(away, script)
    assert misplaced == ["custom_id", "batch", "idempotency_key"]
    assert (one, again, two, four, five) == ("one", "one", "two", "four", "five")
    assert len(taken) == len(named) == 1
    assert taken[0].startswith("task_id: one ") and named[0].startswith('custom_id: "c" ')
    ledger = ledger_of(away)
    with ledger.read() as connection:
        assert sorted(connection.execute(select(jobs.c.id)).scalars()) == ["five", "four", "one", "two"]
    ledger.dispose()
    published = [
        raw for key in valkey.scan_iter() if valkey.type(key) == b"list" for raw in valkey.lrange(key, 0, -1)
    ]
    assert len(published) == 5, "each that was taken, and the first of them twice"
    assert not any(b"three" in raw for raw in published)
