"""A broker that forgets, dies, drops its clients, stalls and is full. Invariants 1 and 4: it holds hints only.

Every job ends once, none is called twice because of a redelivery, and work goes on within seconds of its return.
"""

from __future__ import annotations

import functools
import threading
import time
from contextlib import closing

import pytest
from celery import Celery

from tests.support.arena import MODEL, Arena
from tests.support.outage import wait_for_last_call
from tests.support.proxy import Proxy
from tests.support.refusing import refusing
from worker.broker.hints import LONE_QUEUE, UNACKED_KEY, list_keys
from worker.settings import load_settings

RECOVERS_WITHIN_S = 10.0
WORKERS = 2


def begin(arena: Arena, *, full: int, short: int, most_slots: int = 32) -> int:
    """Starts two workers in the middle of a run; how many messages they may have in hand, all together."""
    slots = arena.size(most_slots, 8)
    arena.queue(arena.size(full, short))
    for _ in range(WORKERS):
        arena.worker(concurrency=slots)
    arena.wait_for(lambda: arena.ended() > 2 * slots, "the run is in its middle")
    return WORKERS * load_settings(concurrency=slots, _env_file=None).reserved_count


def calls(arena: Arena) -> int:
    """Calls that the endpoint has received."""
    return int(arena.simulator.stats()["calls"])


def time_the_next_call(arena: Arena, *, beyond: int) -> float:
    """Seconds until the endpoint has received more than `beyond` calls."""
    return arena.wait_for(lambda: calls(arena) > beyond, "a job is handed on and called", within_s=60)


def run_dry(arena: Arena) -> int:
    """Waits until nothing is left to call while the broker is away; calls received until then."""
    return wait_for_last_call(arena, quiet_s=1.0)


def test_the_broker_forgets_everything(arena: Arena) -> None:
    in_hand = begin(arena, full=1500, short=200)
    beyond = calls(arena) + in_hand
    with arena.valkey.client() as client:
        client.flushall()
    recover_s = time_the_next_call(arena, beyond=beyond)
    arena.wait_for_every_worker()
    arena.conclude("broker FLUSHALL", most_extra_calls=0, recover_s=recover_s)
    assert recover_s < RECOVERS_WITHIN_S


def test_the_broker_is_restarted_without_what_it_held(arena: Arena) -> None:
    in_hand = begin(arena, full=1500, short=200)
    beyond = calls(arena) + in_hand
    arena.valkey.kill()
    arena.valkey.start(keeps=False)
    recover_s = time_the_next_call(arena, beyond=beyond)
    arena.wait_for_every_worker()
    arena.conclude("broker restarted empty", most_extra_calls=0, recover_s=recover_s)
    assert recover_s < RECOVERS_WITHIN_S


def test_the_broker_is_killed_and_away(arena: Arena) -> None:
    begin(arena, full=1500, short=200)
    away_s = arena.size(10, 3)
    arena.valkey.kill()
    threading.Event().wait(away_s)
    beyond = run_dry(arena)
    arena.valkey.start()
    recover_s = time_the_next_call(arena, beyond=beyond)
    arena.wait_for_every_worker()
    arena.conclude(f"broker kill -9, away {away_s} s", most_extra_calls=0, recover_s=recover_s)
    assert recover_s < RECOVERS_WITHIN_S


def test_the_broker_drops_its_clients_in_mid_call(arena: Arena) -> None:
    times = arena.size(10, 2)
    in_hand = begin(arena, full=2500, short=240)
    for _ in range(times):
        beyond = calls(arena) + in_hand
        with arena.valkey.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        recover_s = time_the_next_call(arena, beyond=beyond)
        assert recover_s < 3.0, (
            "all that is in hand, and one more: with the broker there it is two calls' time"
        )
    arena.wait_for_every_worker()
    arena.conclude(f"broker CLIENT KILL, {times} times", most_extra_calls=0, recover_s=recover_s)


@pytest.mark.full
def test_the_broker_answers_nobody_for_five_seconds(arena: Arena) -> None:
    in_hand = begin(arena, full=1500, short=200)
    with arena.valkey.client() as client:
        client.execute_command("CLIENT", "PAUSE", "5000", "ALL")
    began_s = time.monotonic()
    beyond = run_dry(arena) + in_hand  # what is in hand may wait for the broker's word on the gate
    threading.Event().wait(began_s + 5 - time.monotonic())
    recover_s = time_the_next_call(arena, beyond=beyond)
    arena.wait_for_every_worker()
    arena.conclude("broker CLIENT PAUSE 5000", most_extra_calls=0, recover_s=recover_s)
    assert recover_s < RECOVERS_WITHIN_S


@pytest.mark.full
def test_the_broker_is_full(arena: Arena) -> None:
    """The workers live through it."""
    begin(arena, full=1500, short=500)  # a busy machine takes seconds for the next steps
    with arena.valkey.client() as client:
        used = int(client.info("memory")["used_memory"])
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", used // 2)
        run_dry(arena)
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        threading.Event().wait(arena.size(12, 3))
        beyond = run_dry(arena)  # what the broker held already was worked on meanwhile
        assert arena.ended() < arena.queued, "nothing is left to publish"
        client.config_set("maxmemory", 0)
    recover_s = time_the_next_call(arena, beyond=beyond)
    arena.wait_for_every_worker()
    arena.conclude("broker at maxmemory", most_extra_calls=0, recover_s=recover_s)
    assert recover_s < RECOVERS_WITHIN_S
    assert [worker.poll() for worker in arena.shop.started] == [None] * WORKERS


@pytest.mark.parametrize(
    ("kind", "drops"),
    [
        ("MISCONF", "keeps its clients"),
        ("READONLY", "drops its clients"),
        pytest.param("MISCONF", "drops its clients", marks=pytest.mark.full),
        pytest.param("READONLY", "keeps its clients", marks=pytest.mark.full),
    ],
)
def test_the_broker_refuses_writes(arena: Arena, kind: str, drops: str) -> None:
    """As where its disk is full. The workers live through it, and say so once."""
    begin(arena, full=1500, short=500)
    send_foreign(arena, arena.size(200, 50))
    with arena.valkey.client() as client:
        with refusing(client, kind):
            if drops == "drops its clients":
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            threading.Event().wait(arena.size(12, 4))
            beyond = run_dry(arena)
            assert arena.ended() < arena.queued, "nothing is left to publish"
        assert [worker.poll() for worker in arena.shop.started] == [None] * WORKERS
    recover_s = time_the_next_call(arena, beyond=beyond)
    arena.wait_for_every_worker()
    arena.conclude(f"broker {kind}, {drops}", most_extra_calls=0, recover_s=recover_s, is_paid_kept=False)
    assert recover_s < RECOVERS_WITHIN_S
    assert [worker.poll() for worker in arena.shop.started] == [None] * WORKERS
    told = arena.worker_log().count("broker.refuses")  # of takes, and of leases
    assert told <= 2 * WORKERS
    assert told or drops == "drops its clients", "then Celery tells of a lost connection"


@pytest.mark.storm  # the health checks take seconds
@pytest.mark.simulator("--latency", "1.0")
@pytest.mark.parametrize("ends_by", ["thaw", "cut"])
def test_the_network_to_the_broker_is_half_open(arena: Arena, ends_by: str) -> None:
    """Calls in flight go on and are recorded meanwhile; work goes on after."""
    with closing(Proxy(arena.valkey.socket, listen=arena.folder / "p.sock")) as proxy:
        arena.shop.settings["broker_url"] = f"redis+socket://{arena.folder}/p.sock?virtual_host=0"
        in_hand = begin(arena, full=1000, short=200)
        ended, in_flight = arena.ended(), arena.in_flight()  # in this order: what ends in between counts once
        assert in_flight > 0
        proxy.freeze()
        arena.wait_for(
            lambda: arena.ended() >= ended + in_flight, "what was in flight is recorded", within_s=5
        )
        threading.Event().wait(15)  # longer than any health check
        beyond = run_dry(arena) + in_hand
        if ends_by == "cut":
            proxy.cut()
        proxy.thaw()
        recover_s = time_the_next_call(arena, beyond=beyond)
        arena.wait_for_every_worker()
        arena.conclude(f"broker half open 15 s, {ends_by}", most_extra_calls=0, recover_s=recover_s)
        assert recover_s < RECOVERS_WITHIN_S
        assert [worker.poll() for worker in arena.shop.started] == [None] * WORKERS


def send_foreign(arena: Arena, count: int) -> None:
    """Messages of somebody else's app: they carry their own request, and no row knows of them yet."""
    with Celery("foreign", broker=arena.valkey.url, set_as_current=False) as foreign:
        for i in range(count):
            request = {"model": MODEL, "messages": [{"role": "user", "content": f"Tell {i}."}]}
            foreign.send_task("antrean.complete_chat", kwargs={"request": request}, ignore_result=True)
    arena.queued += count


def holds_no_foreign_message(arena: Arena) -> bool:
    """Nothing waits in its lists, and nothing is noted as taken."""
    with arena.valkey.client() as client:
        return not client.exists(UNACKED_KEY, *list_keys(LONE_QUEUE))


@pytest.mark.full
def test_the_broker_drops_its_clients_while_they_run_a_foreign_apps_messages(arena: Arena) -> None:
    """Celery delivers what was running again; a claim lets the second delivery pass without a call."""
    slots, times = arena.size(32, 8), arena.size(8, 2)
    send_foreign(arena, arena.size(1500, 500))  # a busy machine takes seconds for what follows
    for _ in range(WORKERS):
        arena.worker(concurrency=slots)
    arena.wait_for(lambda: arena.ended() > slots, "the run is in its middle")
    for _ in range(times):
        if arena.queued - calls(arena) < 8 * slots:  # they are worked on while a busy machine looks
            send_foreign(arena, arena.size(500, 100))
        with arena.valkey.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        recover_s = time_the_next_call(arena, beyond=calls(arena) + 2 * slots)
        assert recover_s < RECOVERS_WITHIN_S
    assert arena.ended() < arena.queued, "the storm was over before the work"
    arena.conclude(f"foreign messages, CLIENT KILL, {times} times", most_extra_calls=0, recover_s=recover_s)


@pytest.mark.full
@pytest.mark.simulator("--latency", "0.5")
@pytest.mark.timeout(240)
def test_workers_are_killed_while_they_run_a_foreign_apps_messages(arena: Arena) -> None:
    """What they had taken and not claimed is delivered again, once nobody has renewed its lease."""
    slots, kills = arena.size(32, 8), arena.size(10, 2)
    send_foreign(arena, arena.size(3000, 160))
    arena.worker(concurrency=slots)
    in_flight = 0
    for _ in range(kills):
        victim = arena.worker(concurrency=slots)
        arena.wait_for(functools.partial(arena.held_by, victim), "it is at work")
        in_flight += arena.kill(victim)
    assert arena.ended() < arena.queued, "the storm was over before the work"
    recover_s = arena.wait_for(lambda: arena.worker_log().count("worker.died") >= kills, "the dead are found")
    # Looked at before the end is waited for: a message that is gone never was a job, and would be waited for in vain.
    arena.wait_for(
        lambda: holds_no_foreign_message(arena), "the broker has given out all it had", within_s=120
    )
    arena.wait_for(
        lambda: sum(arena.states().values()) == arena.queued, "every message is a job", within_s=10
    )
    arena.conclude(
        f"foreign messages, worker kill -9, {kills} times",
        most_extra_calls=in_flight,
        recover_s=recover_s,
        is_paid_kept=False,
    )
