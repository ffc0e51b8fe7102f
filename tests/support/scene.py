"""A worker and Flower while prompts, keys and bad messages with a planted word go through them."""

from __future__ import annotations

import base64
import json
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery

from tests.support.folders import make_short_folder
from tests.support.processes import Process, Shop, SimulatorProcess, free_port, wait_until
from worker.files.home import broker_url

TASK = "antrean.complete_chat"
PLANTED = "pl4nted"  # in every prompt, answer, key and foreign message of this file
KEY = f"key-{PLANTED}-1"
SECRET = f"The {PLANTED} sentence nobody may read. It ends here."
REQUEST = {"model": "DeepSeek-V3.1", "messages": [{"role": "user", "content": SECRET}]}
HEADERS = {"lang": "py", "task": TASK, "retries": 0, "argsrepr": SECRET, "kwargsrepr": SECRET, "note": SECRET}


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
    worker: Process
    flower: Process
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


@contextmanager
def open_scene() -> Iterator[Scene]:
    """The scene, played; gone at the end."""
    folder = make_short_folder()
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
