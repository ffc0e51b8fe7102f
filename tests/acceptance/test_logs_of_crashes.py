"""Real processes at the level debug, in both forms of a log, that crash with a prompt in their hands (invariant 10).

What is planted: a prompt with its answer, the endpoint's key, and the passwords of the broker and of the database.
"""

from __future__ import annotations

import json
import subprocess
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from celery import Celery

from tests.support.processes import Shop, free_port, wait_until

pytestmark = pytest.mark.real_interpreter

PLANTED = "pl4nted"
KEY, BROKER_PASSWORD, DATABASE_PASSWORD = (f"{what}-{PLANTED}" for what in ("key", "broker", "database"))
SECRET = f"The {PLANTED} sentence nobody may read. It ends here."
REQUEST = {"model": "DeepSeek-V3.1", "messages": [{"role": "user", "content": SECRET}]}
_IN_A_TERMINAL = """
import os, pty, sys

os._exit(os.waitstatus_to_exitcode(pty.spawn([sys.executable, "-P", "-m", *sys.argv[1:]])))
"""

# What stands in a process's `sitecustomize`: a defect of ours, as deep as any, with everything secret at hand.
_FAULT = """
import os, threading

def fail(*args, **kwargs):
    prompt, key, request = {secret!r}, os.environ.get("ANTREAN_API_KEY"), (args, kwargs)
    try:
        {{}}[prompt]
    except KeyError as exc:
        raise ValueError(f"cannot use {{prompt!r}} {{key}} {{os.environ.get('ANTREAN_BROKER_URL')}} {{args!r}}") from exc

"""
FAULTS = {
    "thread": "import worker.upkeep.relay as one\none.Relay.run = fail",
    "thread-of-nobody": (
        "import worker.runtime as one\nstart = one.WorkerRuntime.start\n"
        "one.WorkerRuntime.start = lambda self: (start(self), threading.Thread(target=fail).start())"
    ),
    "call": "import worker.attempt.calling as one\none.Caller.call = fail",
    "task": "import worker.consume.request as one\none.BlankRequest.finish = fail",
    "start": "import worker.runtime as one\none.WorkerRuntime.__init__ = fail",
}
TOLD = {
    "thread": "worker.thread_died",
    "thread-of-nobody": "thread.crashed",
    "call": "job.defect",
    "task": "message.unfinished",
    "start": "ValueError",
}


def asks(port: int) -> bool:
    """Whether Flower answered, be it that it failed."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/workers", timeout=5):
            return True
    except urllib.error.HTTPError as exc:
        exc.close()
        return exc.code == 500
    except OSError:
        return False


@pytest.fixture(params=["json", pytest.param("terminal", marks=pytest.mark.full)])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def house(shop: Shop, valkey: Any, valkey_path: str) -> Iterator[Shop]:
    """A broker and an endpoint that ask for secrets, and a ledger."""
    valkey.execute_command("ACL", "SETUSER", "antrean", "on", f">{BROKER_PASSWORD}", "~*", "&*", "+@all")
    shop.settings |= {
        "api_key": KEY,
        "broker_url": f"redis+socket://antrean:{BROKER_PASSWORD}@{valkey_path}?virtual_host=0",
        "database_url": f"sqlite:///{shop.folder}/ledger.db",
        "log_level": "debug",
        "max_attempts": 1,
        "grace_s": 1,
    }
    assert shop.antrean("migrate").code == 0
    (shop.folder / "requests.jsonl").write_text(f"{json.dumps(REQUEST)}\n" * 2)
    yield shop
    valkey.acl_deluser("antrean")


def begin(shop: Shop, form: str, *args: str, fault: str, log: str) -> subprocess.Popen[bytes]:
    """Starts it with `fault` in it, and with its standard error in a file, or on a terminal that ends in that file."""
    folder = shop.folder / "fault"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(f"{textwrap.dedent(_FAULT.format(secret=SECRET))}\n{fault}\n")
    (folder / "in_a_terminal.py").write_text(_IN_A_TERMINAL)
    return shop.begin(*(["in_a_terminal"] if form == "terminal" else []), *args, log=log, python_path=folder)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends it, or what runs in its terminal. A worker has a child, too, for a moment: Python asks `uname`."""
    if "in_a_terminal" in process.args:  # type: ignore[operator]
        for child in psutil.Process(process.pid).children():
            child.terminate()
    elif process.poll() is None:
        process.terminate()
    process.wait(40)


def assert_nothing_is_shown(shop: Shop, form: str, log: str, event: str) -> None:
    text = (shop.folder / log).read_text()
    assert event in text, text[-3000:]
    assert PLANTED not in text, [line for line in text.splitlines() if PLANTED in line]
    is_json = any(line.startswith("{") for line in text.splitlines())
    assert is_json == (form == "json"), text[-3000:]


@pytest.mark.default_cases(1)
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name if name in ("call", "start") else pytest.param(name, marks=pytest.mark.full) for name in FAULTS],
)
def test_a_worker_that_crashes_says_where_and_not_on_what(
    house: Shop, valkey: Any, form: str, name: str
) -> None:
    assert house.antrean("submit", "requests.jsonl").code == 0
    command = ("celery", "-A", "worker", "worker", "-n", "w@%h", "--loglevel", "DEBUG")
    process = begin(house, form, *command, fault=FAULTS[name], log="worker.log")
    log = house.folder / "worker.log"
    wait_until(lambda: TOLD[name] in log.read_text(), within_s=40, what=f"the worker says {TOLD[name]}")
    if name == "call":
        # What foreign producers send, and a broker that hangs up, while it speaks of everything.
        with Celery("another", broker=house.settings["broker_url"], set_as_current=False) as foreign:
            foreign.send_task(
                "antrean.complete_chat", args=[SECRET], kwargs={SECRET: SECRET}, ignore_result=True
            )
            foreign.send_task("another.task", args=[SECRET], kwargs={"a": SECRET}, ignore_result=True)
            foreign.send_task("antrean.complete_chat", kwargs={"request": REQUEST}, ignore_result=True)
        wait_until(lambda: "message.set_aside" in log.read_text(), within_s=20, what="they are taken")
        for kind in ("normal", "pubsub"):
            valkey.client_kill_filter(_type=kind, skipme=True)
        wait_until(lambda: "connection" in log.read_text().lower(), within_s=20, what="it lost the broker")
    stop(process)
    assert_nothing_is_shown(house, form, "worker.log", TOLD[name])
    text = log.read_text()
    assert "in fail" in text or name == "call", "a traceback says where"


@pytest.mark.slow
def test_commands_and_the_keeper_that_crash_say_where_and_not_on_what(house: Shop, form: str) -> None:
    (house.folder / "documents").mkdir()
    (house.folder / "documents" / "one.txt").write_text(SECRET)
    (house.folder / "prompt.md").write_text("Summarise: {{ text }}\n")
    run = ("worker.cli", "run", "documents", "-p", "prompt.md")
    for name, command, fault in (
        ("run.log", run, "import worker.operations.run_input as one\none.check_documents = fail"),
        (
            "submit.log",
            ("worker.cli", "submit", "requests.jsonl"),
            "import worker.operations.request_file as one\none.submit_many = fail",
        ),
        (
            "status.log",
            ("worker.cli", "status"),
            "import worker.operations.status as one\none.count_states = fail",
        ),
    ):
        process = begin(house, form, *command, fault=fault, log=name)
        assert process.wait(60) == 70
        text = (house.folder / name).read_text()
        assert "this should not have happened: ValueError, at sitecustomize.py:" in text, text[-3000:]
        assert "in fail" in text and "KeyError" in text
        assert PLANTED not in text
    keeper = "import asyncio\nasyncio.start_unix_server = fail"
    begin(house, form, *run, fault=keeper, log="run2.log").wait(60)
    for log in (house.folder / "run2.log", house.folder / ".antrean" / "logs" / "keeper.log"):
        assert PLANTED not in log.read_text(), log
    assert "process.crashed" in log.read_text() and "in fail" in log.read_text()


@pytest.mark.full
@pytest.mark.slow
def test_flower_that_fails_says_where_and_not_on_what(house: Shop, form: str) -> None:
    fault = "import flower.views.workers as one\none.WorkersView.get = fail"
    port = free_port()
    command = ("worker.cli", "flower", "--port", str(port))
    house.settings |= {"flower_auth": "off"}
    process = begin(house, form, *command, fault=fault, log="flower.log")
    wait_until(lambda: asks(port), within_s=40, what="Flower answers")
    stop(process)
    assert_nothing_is_shown(house, form, "flower.log", "ValueError")
    assert "in fail" in (house.folder / "flower.log").read_text()


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("database", f"postgresql://antrean:{DATABASE_PASSWORD}@127.0.0.1:9/antrean"),
        ("broker", f"redis://antrean:{BROKER_PASSWORD}@127.0.0.1:9/0"),
        ("broker", f"redis://antrean:{BROKER_PASSWORD}@[half/0"),
        ("database", f"postgresql://antrean:{DATABASE_PASSWORD}@h:port/antrean"),
    ],
)
def test_what_is_away_is_named_without_its_password(house: Shop, name: str, address: str) -> None:
    for command in ("check", "worker", "up"):
        done = house.antrean(command, **{f"{name}_url": address, "flower_port": 0})
        assert PLANTED not in done.out + done.err, (command, done.err)
        assert done.code in (3, 4) or (name == "broker" and command == "status"), (
            command,
            done.code,
            done.err,
        )
