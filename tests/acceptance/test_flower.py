"""Flower, `inspect`, events and logs, looked through for what was planted in prompts, answers and keys (invariant 10)."""

from __future__ import annotations

import http.client
import json
import os
import pickle
import re
import shelve
import shutil
import signal
import socket
import subprocess
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest

from tests.support.processes import end, wait_until
from tests.support.scene import PLANTED, TASK, Scene, is_shown
from worker.broker.hints import UNACKED_KEY

pytestmark = pytest.mark.real_interpreter

SUMMARY = re.compile(r"^'\d+ tokens · stop · \d+\.\d s'$")


@pytest.mark.full
@pytest.mark.timeout(240)
def test_no_page_of_flower_and_nothing_of_its_api_shows_what_was_planted(scene: Scene) -> None:
    workers = [
        worker for worker, is_alive in json.loads(scene.get("/api/workers?status=1")[1]).items() if is_alive
    ]
    assert workers
    table = "&start=0&length=500&search[value]=&order[0][column]=0&columns[0][data]=name&order[0][dir]=asc"
    paths = ["/", "/workers", "/workers?refresh=1&json=1", "/tasks", "/broker", "/metrics", "/api/task/types"]
    paths += ["/api/tasks", "/api/workers?refresh=1", "/api/queues/length", f"/tasks/datatable?draw=1{table}"]
    paths += [f"/worker/{quote(name)}" for name in workers]
    for task_id in scene.tasks():
        paths += [f"/task/{quote(task_id)}", f"/api/task/info/{quote(task_id)}"]
    assert len(paths) > 25

    for path in paths:
        status, body = scene.get(path)
        assert status == 200, path
        assert not is_shown(body), (path, re.findall(rb"[^,]{0,80}pl4nted[^,]{0,80}", body)[:3])
    assert scene.get(f"/api/tasks?search={PLANTED}")[1] == b"{}"


def test_every_published_job_is_a_task_with_its_state_and_a_summary(scene: Scene) -> None:
    tasks = scene.tasks()
    done = [task for task in tasks.values() if task["state"] == "SUCCESS" and task["name"] == TASK]
    assert len(done) >= 5
    assert all(SUMMARY.match(task["result"]) for task in done), [task["result"] for task in done]
    assert tasks["failed-1"]["exception"] == "JobFailed('server_error')"
    assert tasks["waiting-1"]["state"] == "RETRY"
    assert tasks["waiting-1"]["exception"] == "waits: rate_limited"


def test_inspect_tells_of_jobs_and_of_nothing_in_them(scene: Scene) -> None:
    active = [job for jobs in scene.inspected["active"].values() for job in jobs]
    assert {"kwargs-1", "reprs-1", "args-1"} <= {job["id"] for job in active}
    assert {(job["name"], job["args"], job["kwargs"]) for job in active} == {(TASK, "()", "{}")}
    assert any("kwargs-1" in jobs for jobs in scene.inspected["query_task"].values())
    assert "kwargs-1" in (scene.shop.folder / "inspect.log").read_text()
    assert not is_shown(json.dumps(scene.inspected, default=repr))


def test_events_say_what_happens_and_nothing_of_what_is_asked(scene: Scene) -> None:
    ours = [event for event in scene.events if event["type"] != "task-sent"]
    kinds = {event["type"] for event in ours}
    assert {"task-received", "task-started", "task-succeeded", "task-failed", "task-retried"} <= kinds
    assert [event for event in ours if is_shown(json.dumps(event, default=repr))] == []


def test_invariant_10_no_log_no_kept_history_and_no_command_line_shows_what_was_planted(scene: Scene) -> None:
    wait_until(
        lambda: (scene.home / "flower.history.json").exists(), within_s=10, what="Flower saves its state"
    )
    files = [*scene.shop.folder.glob("*.log"), *(scene.home / "logs").iterdir(), *scene.home.glob("flower.*")]
    assert {"worker.log", "flower.log", "valkey.log", "keeper.log"} <= {file.name for file in files}
    for file in files:
        shown = [line for line in file.read_bytes().splitlines() if is_shown(line)]
        assert shown == [], file
        if file.name not in ("flower.password", "flower.cookie-secret"):
            assert scene.password.encode() not in file.read_bytes(), file
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        assert not is_shown(line)
        assert scene.password not in line


def test_bad_messages_neither_end_the_worker_nor_stay_in_the_broker(scene: Scene) -> None:
    assert scene.worker.poll() is None
    logs = (scene.shop.folder / "worker.log", scene.home / "logs" / "worker.log")  # ours, and that of `run`
    log = "".join(path.read_text() for path in logs)
    for event in ("message.set_aside", "message.unreadable"):
        assert event in log
    with scene.foreign.connection() as connection:
        client = connection.channel().client
        wait_until(
            lambda: client.hlen(UNACKED_KEY) == 0, within_s=10, what="no message is left unacknowledged"
        )
        assert client.llen("celery") == 0
        client.connection_pool.disconnect()


def test_flower_asks_for_the_password_everywhere_and_changes_nothing(scene: Scene) -> None:
    for path in ("/", "/tasks", "/metrics", "/broker", "/api/tasks", "/api/workers"):
        assert scene.get(path, password=None)[0] == 401, path
        assert scene.get(path, password="wrong")[0] == 401, path
    assert (scene.home / "flower.password").stat().st_mode & 0o777 == 0o600
    worker = quote(next(iter(json.loads(scene.get("/api/workers?status=1")[1]))))
    for path in (f"worker/shutdown/{worker}", "task/revoke/waiting-1", f"task/send-task/{TASK}"):
        status, body = scene.get(f"/api/{path}", data=b"{}")
        assert (status, body) == (403, b"Read only mode is enabled"), path
    listening = {
        c.laddr.ip for c in psutil.Process(scene.flower.pid).net_connections() if c.status == "LISTEN"
    }
    assert listening == {"127.0.0.1"}


def test_a_used_port_and_an_open_page_for_all_are_sentences(scene: Scene) -> None:
    used = scene.shop.antrean("flower", "--port", str(scene.port))
    assert (used.code, "choose another port" in used.err) == (4, True)
    exposed = scene.shop.antrean("flower", "--address", "0.0.0.0", "--port", "0", flower_auth="off")
    assert (exposed.code, "loopback" in exposed.err) == (3, True)


@pytest.mark.full
def test_in_a_real_browser_one_logs_in_and_sees_workers_and_tasks(scene: Scene, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium here: apt-get install chromium")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    )
    flags += " --disable-component-update --disable-sync --disable-dev-shm-usage --virtual-time-budget=8000"
    shots = Path(os.environ.get("ANTREAN_SCREENSHOTS") or tmp_path)

    def browse(path: str, *more: str, login: str) -> str:
        command = [chromium, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", *more]
        url = f"http://{login}127.0.0.1:{scene.port}{path}"
        done = subprocess.run([*command, url], capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        return done.stdout.decode()

    login = f"antrean:{scene.password}@"
    refused = browse("/tasks", "--dump-dom", login="antrean:wrong@")
    workers = browse("/workers", "--dump-dom", login=login)
    tasks = browse("/tasks", "--dump-dom", login=login)
    task = browse("/task/failed-1", "--dump-dom", login=login)
    pages = (("workers", "/workers"), ("tasks", "/tasks"), ("task", "/task/failed-1"))
    for (name, path), width in product(pages, (1280, 800)):
        shot = shots / f"flower-{name}-{width}.png"
        browse(path, f"--screenshot={shot}", f"--window-size={width},900", login=login)
        assert shot.read_bytes().startswith(b"\x89PNG")
        assert shot.stat().st_size > 10_000

    assert "waiting-1" not in refused
    assert socket.gethostname() in workers
    assert "Online" in workers
    assert all(word in tasks for word in ("waiting-1", "RETRY", "failed-1", "server_error", "tokens · stop"))
    assert "server_error" in task
    assert "JobFailed" not in tasks + task
    assert not re.search(r"'\d+ tokens", tasks)
    headings = re.findall(r'<th[^>]* data-column="(\w+)"', tasks)
    assert headings[:3] == ["state", "result", "exception"], "what a narrow window cuts off comes last"
    assert "btn-danger" not in task  # no button that revokes
    assert not any(is_shown(page) for page in (workers, tasks, task))


def kept_states(scene: Scene) -> dict[str, str]:
    """The tasks of the history that Flower has saved, which it replaces in one step."""
    try:
        kept = json.loads((scene.home / "flower.history.json").read_bytes())
    except FileNotFoundError:
        return {}
    return {task["uuid"]: task["state"] for task in kept["tasks"]}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_flower_still_knows_its_tasks_after_a_restart(scene: Scene, number: int) -> None:
    before = scene.tasks()
    known = {name: task["state"] for name, task in before.items()}
    wait_until(lambda: known.items() <= kept_states(scene).items(), within_s=10, what="all is saved")
    end(scene.flower, number)
    scene.begin_flower()
    after = scene.tasks()
    assert known.items() <= {name: task["state"] for name, task in after.items()}.items()


class Planted:
    """Its pickle makes a file, as the pickle of a stranger would do anything."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


def test_a_history_that_cannot_be_read_is_set_aside_and_a_pickle_is_never_run(scene: Scene) -> None:
    ran = scene.shop.folder / "ran"
    end(scene.flower)
    (scene.home / "flower.history.json").write_bytes(pickle.dumps(Planted(ran)))
    with shelve.open(str(scene.home / "flower.db")) as older:  # where Flower itself would look
        older["events"] = Planted(ran)
    scene.begin_flower()
    assert scene.tasks() == {}
    assert not ran.exists()
    assert (scene.home / "flower.history.json.unreadable").exists()


def test_a_password_that_is_not_ascii_is_refused_and_guesses_are_slowed_down_and_logged(scene: Scene) -> None:
    log = scene.shop.folder / "flower.log"
    before = log.read_text().count("flower.login_refused")
    answers = [scene.get("/tasks", password=f"pässwort-{i}")[0] for i in range(12)]
    # Others of this file guessed as well, so how many are left is not known: each of them is one of the two.
    assert answers[0] == 401
    assert set(answers) == {401, 429}
    assert sorted(answers) == answers
    assert scene.get("/tasks")[0] == 429, "who guesses in step with the owner learns nothing"
    assert log.read_text().count("flower.login_refused") - before == answers.count(401)
    assert "pässwort" not in log.read_text()
    wait_until(
        lambda: scene.get("/tasks")[0] == 200, within_s=15, what="the right password is looked at again"
    )


def test_an_open_page_answers_to_the_names_of_this_machine_only(scene: Scene) -> None:
    end(scene.flower)
    scene.begin_flower(flower_auth="off")

    def status(host: str, path: str = "/tasks") -> int:
        connection = http.client.HTTPConnection("127.0.0.1", scene.port, timeout=20)
        try:
            connection.request("GET", path, headers={"Host": host})
            return connection.getresponse().status
        finally:
            connection.close()

    for host in (f"127.0.0.1:{scene.port}", f"localhost:{scene.port}", "[::1]:5555", "LOCALHOST"):
        assert status(host) == 200, host
    for host in ("evil.example", f"evil.example:{scene.port}", "127.0.0.1.evil.example", "0.0.0.0", ""):
        for path in ("/tasks", "/api/tasks", "/metrics", "/static/css/flower.css"):
            assert status(host, path) == 421, (host, path)
