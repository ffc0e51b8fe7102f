"""The simulator's own paths: counts, and faults that change while it runs."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import requests

from api_client.client import EndpointClient
from api_client.config import Credential, EndpointConfig
from api_client.errors import ApiError
from api_client.simulator import SimulatorConfig, SimulatorThread

REQUEST: dict[str, Any] = {"model": "DeepSeek-V3.1", "messages": [{"role": "user", "content": "Hello!"}]}


def post(simulator: SimulatorThread, job: str = "") -> int:
    headers = {"X-Antrean-Job": job, "api-key": "sk-new"}
    url = simulator.url + "/v1/chat/completions"
    return requests.post(url, json=REQUEST, headers=headers, timeout=5).status_code


def change(simulator: SimulatorThread, **changes: Any) -> requests.Response:
    return requests.post(simulator.url + "/simulator/faults", json=changes, timeout=5)


def test_calls_are_counted_by_their_job() -> None:
    with SimulatorThread() as simulator:
        for job in ("a", "b", "a"):
            post(simulator, job)
        twice = {"received": 2, "started": 2, "paid": 2, "faults": 0, "refused": 0, "abandoned": 0}
        once = twice | {"received": 1, "started": 1, "paid": 1}
        counts = requests.get(simulator.url + "/simulator/calls", timeout=5).json()
        assert counts == {"a": twice, "b": once}
        for query in ("at_least=2", "paid_at_least=2"):
            repeated = requests.get(simulator.url + "/simulator/calls?" + query, timeout=5).json()
            assert repeated == {"a": twice}


def test_the_stats_need_no_key_and_a_reset_begins_at_zero() -> None:
    with SimulatorThread(SimulatorConfig(key="sk", latency_s=0.0)) as simulator:
        assert post(simulator) == 401
        stats = requests.get(simulator.url + "/simulator/stats", timeout=5).json()
        assert (stats["calls"], stats["refused"], stats["in_flight"]) == (1, {"401": 1}, 0)
        zeroed = requests.post(simulator.url + "/simulator/reset", timeout=5).json()
        assert (zeroed["calls"], zeroed["refused"]) == (0, {})
        assert zeroed["started_at"] >= stats["started_at"]


def test_a_client_that_goes_away_while_it_waits_is_counted_as_abandoned_and_not_paid() -> None:
    with SimulatorThread(SimulatorConfig(latency_s=3600.0)) as simulator:
        with pytest.raises(requests.ReadTimeout):
            requests.post(
                simulator.url + "/v1/chat/completions",
                json=REQUEST,
                headers={"X-Antrean-Job": "a"},
                timeout=0.05,
            )
        stats = simulator.wait_for(lambda stats: stats["abandoned"] == 1)
        assert (stats["started"], stats["paid"], stats["in_flight"]) == (1, 0, 0)
        assert simulator.calls()["a"]["abandoned"] == 1


def test_calls_at_the_same_time_are_seen_in_the_most_in_flight() -> None:
    with SimulatorThread(SimulatorConfig(latency_s=0.2)) as simulator:
        threads = [threading.Thread(target=post, args=(simulator,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = simulator.stats()
        assert (stats["max_in_flight"], stats["in_flight"], stats["paid"]) == (8, 0, 8)


def test_faults_change_at_run_time_and_go_back_after_a_while() -> None:
    with SimulatorThread() as simulator:
        assert change(simulator, rate_500=1.0, for_s=0.3).json() == {"changed": ["for_s", "rate_500"]}
        assert post(simulator) == 500
        statuses = iter(lambda: post(simulator), 200)
        assert set(statuses) <= {500}


def test_a_change_ends_the_passing_change_before_it() -> None:
    with SimulatorThread() as simulator:
        change(simulator, rate_500=1.0, for_s=3600)
        change(simulator, latency_s=0.001)
        assert post(simulator) == 200


def test_a_key_is_rotated_at_run_time() -> None:
    with SimulatorThread(SimulatorConfig(key="sk-old", latency_s=0.0)) as simulator:
        assert post(simulator) == 401
        change(simulator, key="sk-new")
        assert post(simulator) == 200


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rate_500": 2}, "rate_500 must be from 0 to 1, not 2"),
        ({"rate_500": 0.6, "rate_429": 0.6}, "fault rates add up to 1.2, and can be 1 at most"),
        ({"latency_s": "slow"}, "latency_s must be a number, not 'slow'"),
        ({"for_s": 0}, "for_s must be a number above 0, not 0"),
    ],
)
def test_a_senseless_change_is_refused_and_changes_nothing(changes: dict[str, Any], sentence: str) -> None:
    with SimulatorThread() as simulator:
        answer = change(simulator, **changes)
        assert (answer.status_code, answer.json()["message"]) == (400, sentence)
        assert post(simulator) == 200


def test_the_port_cannot_be_changed_while_it_runs() -> None:
    with SimulatorThread() as simulator, pytest.raises(ValueError, match="port cannot be changed"):
        simulator.set_faults(port=1)


def test_each_paid_call_is_a_line_in_the_call_log(tmp_path: Path) -> None:
    log = tmp_path / "calls.jsonl"
    with SimulatorThread(SimulatorConfig(latency_s=0.0, log_calls_path=log)) as simulator:
        post(simulator, "a")
        simulator.set_faults(rate_500=1.0)
        post(simulator, "b")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["job"], line["status"]) for line in lines] == [("a", 200)]


def test_a_look_before_the_first_job_is_refused_as_it_should_be_and_counts_as_no_call() -> None:
    with SimulatorThread(SimulatorConfig(key="k")) as simulator:
        client = EndpointClient(EndpointConfig(simulator.url))
        said = []
        for model, key in ((None, "k"), ("gpt-0", "k"), ("DeepSeek-V3.1", "k"), (None, "wrong")):
            with pytest.raises(ApiError) as caught:
                client.probe_chat(model, credential=Credential(key))
            said.append(caught.value.failure.http_status)
        assert said == [400, 404, 400, 401]
        assert simulator.stats()["calls"] == 0
        client.close()
