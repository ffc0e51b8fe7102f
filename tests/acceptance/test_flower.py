"""Flower, `inspect`, events and logs, looked through for what was planted in prompts, answers and keys (invariant 10)."""

from __future__ import annotations

import base64
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
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
from celery import Celery

from tests.support.processes import Shop, SimulatorProcess, end, wait_until
from worker.broker.hints import UNACKED_KEY
from worker.files.home import broker_url

TASK = "antrean.complete_chat"
PLANTED = "pl4nted"  # in every prompt, answer, key and foreign message of this file
KEY = f"key-{PLANTED}-1"
SECRET = f"The {PLANTED} sentence nobody may read. It ends here."
REQUEST = {"model": "DeepSeek-V3.1", "messages": [{"role": "user", "content": SECRET}]}
HEADERS = {"lang": "py", "task": TASK, "retries": 0, "argsrepr": SECRET, "kwargsrepr": SECRET, "note": SECRET}
SUMMARY = re.compile(r"^'\d+ tokens · stop · \d+\.\d s'$")


def is_shown(text: bytes | str) -> bool:
    """Whether the planted word is in `text`, as it is or inside of base64."""
    # A command line may hold any bytes: those of other tests beside this one do.
    data = text.encode(errors="surrogateescape") if isinstance(text, str) else text
    # Its middle, in each of the three ways in which base64 may be aligned.
    inside = [base64.b64encode(b"x" * shift + PLANTED.encode())[4:8] for shift in range(3)]
    return PLANTED.encode() in data or all(part in data for part in inside)


@dataclass
class Scene:
    """A worker, Flower, and what was seen of them while prompts went through."""

    shop: Shop
    simulator: SimulatorProcess
    port: int
    foreign: Celery
    worker: subprocess.Popen[bytes]
    flower: subprocess.Popen[bytes]
    events: list[dict[str, Any]] = field(default_factory=list)
    inspected: dict[str, Any] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.shop.folder / ".antrean"

    @property
    def password(self) -> str:
        return (self.home / "flower.password").read_text().strip()

    def get(self, path: str, *, data: bytes | None = None, password: str | None = "") -> tuple[int, bytes]:
        """Status and body; logged in unless `password` is None."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=data)
        if password is not None:
            token = base64.b64encode(f"antrean:{password or self.password}".encode()).decode()
            request.add_header("Authorization", f"Basic {token}")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, exc.read()

    def tasks(self) -> dict[str, Any]:
        return json.loads(self.get("/api/tasks")[1])

    def state(self, task_id: str) -> str | None:
        return self.tasks().get(task_id, {}).get("state")

    def send(self, task_id: str | None = None, name: str = TASK, **options: Any) -> str:
        return str(self.foreign.send_task(name, task_id=task_id, **options).id)

    def begin_flower(self, **settings: object) -> None:
        """`celery -A worker flower`, bare but for how often it saves, up to its first answer."""
        command = ["celery", "-A", "worker", "flower", "--state_save_interval=500"]
        self.flower = self.shop.begin(*command, log="flower.log", flower_port=self.port, **settings)
        wait_until(self.is_up, within_s=30, what="Flower answers")

    def is_up(self) -> bool:
        assert self.flower.poll() is None, (self.shop.folder / "flower.log").read_text()[-2000:]
        try:
            return self.get("/healthcheck")[0] == 200
        except OSError:
            return False


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    folder = Path(tempfile.mkdtemp(prefix="an", dir="/tmp"))
    simulator = SimulatorProcess("--latency", "0.1")
    settings = {"home": folder / ".antrean", "base_url": simulator.url, "api_key": KEY, "max_attempts": 2}
    shop = Shop(folder, {**settings, "backoff_base_s": 0.2, "lease_s": 3})
    foreign = Celery("another", broker=broker_url(folder / ".antrean"), set_as_current=False)
    foreign.conf.task_send_sent_event = True
    try:
        worker = shop.worker(concurrency=16)
        scene = Scene(shop, simulator, free_port(), foreign, worker, worker)
        scene.begin_flower()
        stop = watch_events(scene)
        try:
            play(scene)
        finally:
            stop()
        yield scene
    finally:
        foreign.close()
        shop.close()
        simulator.close()
        shutil.rmtree(folder, ignore_errors=True)


def watch_events(scene: Scene) -> Callable[[], None]:
    """Keeps every event, but those that the foreign producer publishes of itself."""
    connection = scene.foreign.connection()
    receiver = scene.foreign.events.Receiver(connection, handlers={"*": scene.events.append})
    thread = threading.Thread(target=lambda: receiver.capture(limit=None, timeout=None, wakeup=True))

    def stop() -> None:
        receiver.should_stop = True
        thread.join(20)
        connection.close()

    thread.start()
    return stop


def play(scene: Scene) -> None:
    """Prompts by every door; bad messages; jobs that wait and fail; `inspect` while calls are in flight."""
    folder, simulator = scene.shop.folder, scene.simulator
    (folder / "documents").mkdir()
    for i in range(3):
        (folder / "documents" / f"{i}.txt").write_text(f"Note {i}. {SECRET}")
    (folder / "prompt.md").write_text(f"---\nsystem: You {PLANTED}.\n---\nSummarise: {{{{ text }}}}\n")
    done = scene.shop.antrean("run", "documents", "--prompt", "prompt.md")
    assert done.code == 0, done.err
    assert is_shown((folder / "results.jsonl").read_text()), "the answers hold what was planted"

    simulator.set_faults(latency_s=8.0)
    (folder / "requests.jsonl").write_text(json.dumps(REQUEST) + "\n")
    scene.shop.antrean("submit", "requests.jsonl")
    scene.send("kwargs-1", kwargs={"request": REQUEST}, headers={"note": SECRET}, shadow=SECRET)
    scene.send("reprs-1", kwargs={"request": REQUEST}, argsrepr=SECRET, kwargsrepr=SECRET, root_id=SECRET)
    scene.send("args-1", args=[REQUEST], parent_id=SECRET)
    scene.send("later-1", kwargs={"request": REQUEST}, countdown=120)
    wait_until(lambda: simulator.stats()["in_flight"] >= 3, within_s=15, what="calls are in flight")
    inspect_all(scene, ["kwargs-1", "reprs-1", "args-1", "later-1"])
    simulator.set_faults(latency_s=0.1)

    plant_bad_messages(scene)
    scene.send("after-1", kwargs={"request": REQUEST})
    wait_until(lambda: scene.state("after-1") in ("SUCCESS", "FAILURE"), within_s=20, what="work goes on")
    wait_until(lambda: scene.state("kwargs-1") == "SUCCESS", within_s=20, what="the looked-at calls end")
    simulator.set_faults(rate_500=1.0)
    scene.send("failed-1", kwargs={"request": REQUEST, "max_attempts": 1})
    wait_until(lambda: scene.state("failed-1") == "FAILURE", within_s=20, what="a job fails")
    simulator.set_faults(rate_500=0.0, rate_429=1.0, retry_after_s=600)
    scene.send("waiting-1", kwargs={"request": REQUEST})
    wait_until(lambda: scene.state("waiting-1") == "RETRY", within_s=20, what="a job waits")


def inspect_all(scene: Scene, task_ids: list[str]) -> None:
    command = ["celery", "-A", "worker", "inspect", "active"]
    scene.shop.begin(*command, log="inspect.log").wait(
        20
    )  # first: on a busy machine it takes a while to start
    ask = scene.foreign.control.inspect(timeout=0.7)
    scene.inspected["query_task"] = ask.query_task(task_ids)
    for name in ("active", "reserved", "scheduled", "stats", "conf", "report"):
        scene.inspected[name] = getattr(ask, name)()


def plant_bad_messages(scene: Scene) -> None:
    scene.send("bad-1", args=[SECRET])
    scene.send("bad-2", args=[SECRET, SECRET], kwargs={SECRET: SECRET})
    scene.send("bad-3", kwargs={"request": {**REQUEST, SECRET: SECRET, "temperature": SECRET}})
    scene.send("unknown-1", name="another.app.task", args=[SECRET], kwargs={"a": SECRET})
    scene.send("unknown-2", name=SECRET, args=[SECRET])
    scene.send("builtin-1", name="celery.accumulate", args=[SECRET])
    scene.foreign.conf.task_protocol = 1
    scene.send("old-1", kwargs={"request": REQUEST})
    scene.send("old-2", name="another.app.task", args=[SECRET])
    scene.foreign.conf.task_protocol = 2
    good = json.dumps([[], {"request": REQUEST}, {}])
    bodies: list[tuple[Any, dict[str, Any] | None, str]] = [
        (f"no JSON {SECRET}", {**HEADERS, "id": "raw-1"}, "application/json"),
        (b"\xff\xfe" + SECRET.encode(), {**HEADERS, "id": "raw-2"}, "application/json"),
        (SECRET.encode(), {**HEADERS, "id": "raw-3"}, "application/x-python-serialize"),
        (SECRET, {**HEADERS, "id": "raw-4"}, f"text/plain; {SECRET}"),
        (json.dumps(SECRET), {"note": SECRET}, "application/json"),
        (json.dumps({"task": [SECRET], "id": SECRET}), {}, "application/json"),
        (json.dumps({"task": TASK, "kwargs": {"request": REQUEST}}), {}, "application/json"),
        ("5", {**HEADERS, "id": "raw-5"}, "application/json"),
        ("null", {**HEADERS, "id": "raw-6"}, "application/json"),
        (json.dumps(SECRET), {**HEADERS, "id": "raw-7"}, "application/json"),
        (json.dumps([SECRET]), {**HEADERS, "id": "raw-8"}, "application/json"),
        (json.dumps([SECRET, SECRET, SECRET]), {**HEADERS, "id": "raw-9"}, "application/json"),
        (json.dumps({"args": SECRET, "kwargs": SECRET}), {**HEADERS, "id": "raw-10"}, "application/json"),
        (good, HEADERS, "application/json"),
        (good, {**HEADERS, "id": [SECRET]}, "application/json"),
        (good, {**HEADERS, "id": "raw-11", "task": {"a": SECRET}}, "application/json"),
        (good, {**HEADERS, "id": "raw-12", "eta": SECRET}, "application/json"),
        (good, {**HEADERS, "id": "raw-13", "expires": SECRET}, "application/json"),
        (good, {**HEADERS, "id": "raw-14", "timelimit": SECRET}, "application/json"),
        (good, {**HEADERS, "id": "raw-15", "retries": SECRET, "root_id": {"a": SECRET}}, "application/json"),
        (good, {**HEADERS, "id": "raw-16", "stamped_headers": SECRET, "stamps": SECRET}, "application/json"),
    ]
    with scene.foreign.connection() as connection:
        producer = connection.Producer()
        for body, headers, content_type in bodies:
            producer.publish(body, routing_key="celery", content_type=content_type, headers=headers)


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
    for name, path in (("workers", "/workers"), ("tasks", "/tasks")):
        shot = shots / f"flower-{name}.png"
        browse(path, f"--screenshot={shot}", "--window-size=1500,1000", login=login)
        assert shot.read_bytes().startswith(b"\x89PNG")
        assert shot.stat().st_size > 10_000

    assert "waiting-1" not in refused
    assert socket.gethostname() in workers
    assert "Online" in workers
    assert all(word in tasks for word in ("waiting-1", "RETRY", "failed-1", "server_error", "tokens · stop"))
    assert "server_error" in task
    assert "btn-danger" not in task  # no button that revokes
    assert not any(is_shown(page) for page in (workers, tasks, task))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_flower_still_knows_its_tasks_after_a_restart(scene: Scene, number: int) -> None:
    before = scene.tasks()
    time.sleep(1.5)  # it saves every half a second here
    end(scene.flower, number)
    scene.begin_flower()
    after = scene.tasks()
    assert {name: task["state"] for name, task in before.items()}.items() <= {
        name: task["state"] for name, task in after.items()
    }.items()


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
