"""Our event dispatcher, read by Celery's own receiver."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import redis
from celery import Celery


def test_events_are_gathered_and_read_by_celery_as_its_own(valkey: redis.Redis, valkey_path: str) -> None:
    seen: list[dict[str, Any]] = []
    with (
        Celery(
            "events", broker=f"redis+socket://{valkey_path}", events="worker.consume.events:Events"
        ) as app,
        app.connection_for_read() as reading,
        app.connection_for_write() as writing,
    ):
        receiver = app.events.Receiver(reading, handlers={"*": seen.append})
        with receiver.consumer_context(wakeup=False) as (listening, _, _):
            with suppress(TimeoutError):
                listening.drain_events(timeout=0.2)  # it subscribes
            dispatcher = app.events.Dispatcher(
                writing, hostname="w@h", buffer_group=["task"], on_send_buffered=lambda: None
            )
            for n in range(3):
                dispatcher.send("task-started", uuid=f"j-{n}")
            dispatcher.send("task-received", uuid="j-0", name="a.task")
            dispatcher.send("task-succeeded", uuid="j-0", result="'7 tokens'", runtime=0.5)
            publishes = valkey.info("commandstats").get("cmdstat_publish", {"calls": 0})["calls"]
            dispatcher.flush()
            after = valkey.info("commandstats")["cmdstat_publish"]["calls"]
            assert after - publishes == 1, "all in one message"
            dispatcher.send("worker-online")  # not of a task: at once
            while len(seen) < 6:
                listening.drain_events(timeout=5)
    assert [(one["type"], one.get("uuid")) for one in seen] == [
        ("task-started", "j-0"),
        ("task-started", "j-1"),
        ("task-started", "j-2"),
        ("task-received", "j-0"),
        ("task-succeeded", "j-0"),
        ("worker-online", None),
    ]
    assert seen[3]["name"] == "a.task"
    assert seen[4]["result"] == "'7 tokens'"
    assert all(one["hostname"] == "w@h" and one["timestamp"] > 0 for one in seen)
    clocks = [one["clock"] for one in seen]
    assert clocks == sorted(set(clocks)), "Lamport's clock goes on"


def test_what_was_buffered_when_the_connection_broke_is_sent_by_the_next_dispatcher(
    valkey: redis.Redis, valkey_path: str
) -> None:
    sent: list[Any] = []
    with Celery(
        "events", broker=f"redis+socket://{valkey_path}", events="worker.consume.events:Events"
    ) as app:

        def make() -> Any:
            made = app.events.Dispatcher(
                app.connection_for_write(),
                hostname="w@h",
                buffer_group=["task"],
                on_send_buffered=lambda: None,
            )
            made.producer.publish = lambda event, **_: sent.append(event)
            return made

        broken = make()
        broken.send("task-started", uuid="j-1")
        broken.connection.close()
        broken.disable()
        anew = make()
        anew.extend_buffer(broken)
        anew.flush()
    assert [one["uuid"] for (one,) in sent] == ["j-1"]


def test_a_full_buffer_is_sent_at_once(valkey: redis.Redis, valkey_path: str) -> None:
    sent: list[Any] = []
    with Celery(
        "events", broker=f"redis+socket://{valkey_path}", events="worker.consume.events:Events"
    ) as app:
        dispatcher = app.events.Dispatcher(
            app.connection_for_write(), hostname="w@h", buffer_group=["task"], on_send_buffered=lambda: None
        )
        dispatcher.producer.publish = lambda event, **_: sent.append(len(event))
        for n in range(1100):
            dispatcher.send("task-started", uuid=f"j-{n}")
    assert sent == [500, 500]
