"""The simulated batching server: calls share its tokens a second, and it never refuses."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import requests

from api_client.simulator import SimulatorConfig, SimulatorThread
from tests.support.calling import ask, ask_at_once

ROOT = Path(__file__).parents[2]
REQUEST = {"model": "DeepSeek-V3.1", "messages": [{"role": "user", "content": "Hello!"}]}


def running(**options: Any) -> SimulatorThread:
    return SimulatorThread(SimulatorConfig(**({"latency_s": 0.0} | options)))


def test_up_to_the_knee_each_call_takes_the_time_of_its_tokens() -> None:
    with running(call_tokens_per_s=200.0, knee=4, answer_tokens=60) as simulator:
        told = ask_at_once(simulator, 4)
        assert all(0.3 <= one.took_s < 0.9 for one in told)
        assert {one.body["usage"]["completion_tokens"] for one in told} == {60}


def test_beyond_the_knee_the_sum_stays_flat_and_nobody_is_refused() -> None:
    with running(call_tokens_per_s=200.0, knee=2, answer_tokens=60) as simulator:
        began = time.monotonic()
        told = ask_at_once(simulator, 6)
        took_s = time.monotonic() - began
        assert [one.status for one in told] == [200] * 6
        assert 0.88 <= took_s < 1.7, "360 tokens at 400 a second"


def test_a_call_that_is_given_up_leaves_its_share_to_the_others() -> None:
    with running(call_tokens_per_s=400.0, knee=1, answer_tokens=200) as simulator:
        with pytest.raises(requests.ReadTimeout):
            requests.post(simulator.url + "/chat/completions", json=REQUEST, timeout=0.05)
        assert simulator.wait_for(lambda stats: stats["abandoned"] == 1)["in_flight"] == 0
        assert ask(simulator).took_s < 0.85


def test_a_server_that_stands_still_goes_on_where_it_was_when_its_capacity_is_back() -> None:
    with running(call_tokens_per_s=100.0, knee=2, answer_tokens=20, capacity=0) as simulator:
        simulator.set_faults(timetable=[(0.3, {"capacity": 1})])
        assert ask(simulator).took_s >= 0.45


def test_a_token_limit_of_the_request_shortens_the_answer_and_its_time() -> None:
    with running(call_tokens_per_s=100.0, answer_tokens=1000) as simulator:
        told = ask(simulator, max_tokens=10)
        assert told.body["usage"]["completion_tokens"] == 10
        assert told.body["choices"][0]["finish_reason"] == "length"
        assert told.took_s < 0.5


def test_lengths_differ_by_the_request_and_are_the_same_for_the_same_seed() -> None:
    def lengths(seed: int) -> list[int]:
        with running(answer_tokens=200, answer_spread=1.0, seed=seed) as simulator:
            told = [ask(simulator, text=f"Document {number}") for number in range(6)]
            return [one.body["usage"]["completion_tokens"] for one in told]

    first = lengths(1)
    assert len(set(first)) > 3
    assert first == lengths(1) != lengths(2)


@pytest.mark.full
def test_one_process_carries_three_hundred_calls_at_once_on_little_cpu() -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "api_client.simulator", "--port", "0", "--latency", "0"),
            *("--call-tokens", "50", "--knee", "300", "--answer-tokens", "100"),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            before = psutil.Process(process.pid).cpu_times()
            statuses, took_s = _call_in_waves(url, calls=300, waves=2)
            after = psutil.Process(process.pid).cpu_times()
            stats = requests.get(url + "/simulator/stats", timeout=5).json()
        finally:
            process.kill()
    used_s = after.user + after.system - before.user - before.system
    assert set(statuses) == {200} and len(statuses) == 600
    assert stats["max_in_flight"] == 300
    assert used_s / len(statuses) < 0.001, f"{used_s:.2f} s for 600 calls in {took_s:.1f} s"


def _call_in_waves(url: str, *, calls: int, waves: int) -> tuple[list[int], float]:
    async def call_all() -> list[int]:
        connector = aiohttp.TCPConnector(limit=calls)
        async with aiohttp.ClientSession(connector=connector) as client:

            async def work() -> list[int]:
                statuses = []
                for _ in range(waves):
                    async with client.post(f"{url}/v1/chat/completions", json=REQUEST) as answer:
                        statuses.append(answer.status)
                return statuses

            found = await asyncio.gather(*(work() for _ in range(calls)))
            return [status for statuses in found for status in statuses]

    began = time.monotonic()
    return asyncio.run(call_all()), time.monotonic() - began
