"""The simulated endpoint has limits: calls at once, their rise, calls and tokens a minute, keys, a timetable."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from api_client.simulator import SimulatorConfig, SimulatorThread
from api_client.simulator.tally import name_key
from tests.support.calling import ask, ask_at_once


def running(**options: Any) -> SimulatorThread:
    return SimulatorThread(SimulatorConfig(**({"latency_s": 0.0} | options)))


# Calls at once


def test_more_calls_at_once_than_it_bears_are_refused_at_once_and_without_a_wait() -> None:
    with running(refuse_above=4, latency_s=0.4) as simulator:
        told = ask_at_once(simulator, 7)
        assert [one.status for one in told] == [429] * 3 + [200] * 4
        assert all("retry-after" not in one.headers for one in told)
        assert told[0].body["message"] == "Too Many Requests"
        assert ask(simulator).status == 200
        stats = simulator.stats()
        assert (stats["faults"], stats["turned_away"], stats["paid"]) == ({"refuse_above": 3}, 3, 5)
        assert stats["max_in_flight"] == 5, "four that it bears, and one while it is refused"


def test_the_refusal_has_the_status_the_wait_and_the_code_that_were_asked_for() -> None:
    with running(refuse_above=0, refuse_status=503, refuse_retry_after_s=0.25) as simulator:
        told = ask(simulator)
        assert (told.status, told.body["message"]) == (503, "Service Unavailable")
        assert (told.headers["retry-after"], told.headers["retry-after-ms"]) == ("1", "250")
        simulator.set_faults(refuse_status=402, refuse_code="in_flight_budget_exhausted")
        told = ask(simulator)
        assert (told.status, told.body["error"]["code"]) == (402, "in_flight_budget_exhausted")


def test_the_limit_of_calls_at_once_is_raised_while_it_runs() -> None:
    with running(refuse_above=0) as simulator:
        assert ask(simulator).status == 429
        simulator.set_faults(refuse_above=1)
        assert ask(simulator).status == 200
        simulator.set_faults(refuse_above=None)
        assert ask(simulator).status == 200


def test_each_key_bears_calls_at_once_of_its_own() -> None:
    with running(key="a,b", refuse_keys_above="1,3", latency_s=0.4) as simulator:
        with ThreadPoolExecutor(2) as pool:
            told = list(pool.map(lambda key: ask_at_once(simulator, 4, key=key), ("a", "b")))
        assert [[one.status for one in of_key] for of_key in told] == [[429] * 3 + [200], [429] + [200] * 3]
        assert simulator.stats()["faults"] == {"refuse_keys_above": 4}
        simulator.set_faults(refuse_keys_above="0,3")
        assert (ask(simulator, key="a").status, ask(simulator, key="b").status) == (429, 200)
    with pytest.raises(ValueError, match="as in 4,20"):
        SimulatorConfig(refuse_keys_above="4;20")


def test_calls_at_once_may_not_rise_faster_than_the_slope() -> None:
    with running(slope_per_s=3.0, latency_s=0.3) as simulator:
        told = ask_at_once(simulator, 8)
        assert sorted(one.status for one in told) == [200] * 3 + [429] * 5
        assert simulator.stats()["faults"] == {"slope": 5}


# Rates


def test_the_tokens_of_a_minute_are_those_of_prompts_and_answers() -> None:
    with running(tpm=100, answer_tokens=38) as simulator:
        told = [ask(simulator, text="Say it.") for _ in range(3)]
        assert [one.status for one in told] == [200, 200, 429]
        assert told[0].body["usage"]["total_tokens"] == 41
        assert 58 <= int(told[2].headers["retry-after"]) <= 60
        assert ask(simulator, key="sk-b", text="Say it.").status == 200
        stats = simulator.stats()
        assert (stats["faults"], stats["tokens"], stats["completion_tokens"]) == ({"tpm": 1}, 123, 114)


def test_a_call_of_more_tokens_than_a_minute_has_is_not_told_to_wait() -> None:
    with running(tpm=10, answer_tokens=50) as simulator:
        told = ask(simulator)
        assert told.status == 429
        assert "retry-after" not in told.headers


def test_a_rate_limit_that_tells_no_wait_is_a_bare_429() -> None:
    with running(rpm=1, tells_wait=False) as simulator:
        assert [ask(simulator).status for _ in range(2)] == [200, 429]
        assert "retry-after" not in ask(simulator).headers


def test_every_answer_says_what_is_left_of_the_rates_in_the_form_of_openai() -> None:
    with running(rpm=2, tpm=1000, answer_tokens=48, rate_headers=True) as simulator:
        first, second, refused = (ask(simulator, text="Go.") for _ in range(3))
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-limit-tokens"] == "1000"
        left = [(one.status, one.headers["x-ratelimit-remaining-requests"]) for one in (first, second)]
        assert left == [(200, "1"), (200, "0")]
        assert (refused.status, refused.headers["x-ratelimit-remaining-requests"]) == (429, "0")
        assert [one.headers["x-ratelimit-remaining-tokens"] for one in (first, second)] == ["950", "900"]
        assert re.fullmatch(r"(59\.\d+|60)s|1m0s", first.headers["x-ratelimit-reset-requests"])
        bad = requests.post(
            simulator.url + "/v1/chat/completions", json={}, headers={"api-key": "sk-c"}, timeout=5
        )
        assert (bad.status_code, bad.headers["x-ratelimit-remaining-requests"]) == (400, "1")


def test_without_the_option_no_answer_has_rate_headers() -> None:
    with running(rpm=2) as simulator:
        assert not [name for name in ask(simulator).headers if name.startswith("x-ratelimit")]


def test_a_shorter_window_frees_its_calls_sooner() -> None:
    with running(rpm=1, rate_window_s=0.2) as simulator:
        assert [ask(simulator).status for _ in range(2)] == [200, 429]
        assert set(iter(lambda: ask(simulator).status, 200)) <= {429}


# Keys


def test_several_keys_are_accepted_and_one_of_them_has_no_money_left() -> None:
    with running(key="sk-a, sk-b", spent_keys="sk-c") as simulator:
        assert [ask(simulator, key=f"sk-{name}").status for name in "abcd"] == [200, 200, 402, 401]
        told = ask(simulator, key="sk-c")
        assert told.body["error"]["code"] == "insufficient_quota"
        models = requests.get(simulator.url + "/v1/models", headers={"api-key": "sk-b"}, timeout=5)
        assert models.json() == {"data": [{"id": "DeepSeek-V3.1"}]}


def test_a_key_is_revoked_while_it_runs_and_comes_back() -> None:
    with running(key="sk-a,sk-b") as simulator:
        change = {"revoked_keys": "sk-b"}
        assert requests.post(simulator.url + "/simulator/faults", json=change, timeout=5).ok
        assert [ask(simulator, key=f"sk-{name}").status for name in "ab"] == [200, 401]
        simulator.set_faults(revoked_keys="")
        assert ask(simulator, key="sk-b").status == 200


def test_a_key_is_revoked_also_where_any_key_is_accepted() -> None:
    with running(revoked_keys="sk-b") as simulator:
        assert [ask(simulator, key=f"sk-{name}").status for name in "ab"] == [200, 401]


def test_calls_are_counted_by_key_and_no_key_is_shown() -> None:
    with running(key="sk-a,sk-b", answer_tokens=49) as simulator:
        for name in "aabx":
            ask(simulator, key=f"sk-{name}", text="Hi")
        stats = requests.get(simulator.url + "/simulator/stats", timeout=5)
        assert "sk-" not in stats.text
        one = {"calls": 1, "paid": 1, "refused": 0, "tokens": 50, "in_flight": 0, "max_in_flight": 1}
        assert stats.json()["keys"] == {
            name_key(b"sk-a"): one | {"calls": 2, "paid": 2, "tokens": 100},
            name_key(b"sk-b"): one,
            name_key(b"sk-x"): one | {"paid": 0, "refused": 1, "tokens": 0},
        }


# Over time


def test_a_timetable_halves_and_doubles_what_it_bears() -> None:
    with running(refuse_above=4, latency_s=0.2, timetable=[(0.3, {"capacity": 0.5})]) as simulator:
        assert [one.status for one in ask_at_once(simulator, 5)].count(200) == 4
        simulator.set_faults(timetable=[{"at_s": 0, "capacity": 0.5}, {"at_s": 0.5, "capacity": 2}])
        assert [one.status for one in ask_at_once(simulator, 5)].count(200) == 2
        while simulator.stats()["faults"]["refuse_above"] < 1000 and ask(simulator).status != 200:
            pass
        statuses: list[int] = []
        while statuses.count(200) < 8:
            statuses = [one.status for one in ask_at_once(simulator, 9)]
        assert sorted(statuses) == [200] * 8 + [429]


def test_a_step_comes_also_while_a_passing_change_holds_and_outlives_it() -> None:
    with running(timetable=[(0.1, {"refuse_above": 0})]) as simulator:
        simulator.set_faults(rate_500=1.0, for_s=0.4)
        statuses = [ask(simulator).status]
        while statuses[-1] != 429:
            statuses.append(ask(simulator).status)
        assert set(statuses) == {500, 429}
        simulator.set_faults(latency_s=0.0)
        assert ask(simulator).status == 429


def test_what_is_dead_refuses_connections_drops_calls_and_comes_back() -> None:
    with running(latency_s=0.3, timetable=[(0.1, {"is_dead": True}), (0.6, {"is_dead": False})]) as simulator:
        told = ask(simulator)
        assert (told.status, simulator.stats()["abandoned"]) == (0, 1)
        with pytest.raises(requests.ConnectionError, match="refused"):
            requests.get(simulator.url + "/v1/models", timeout=5)
        while ask(simulator).status != 200:
            pass
        assert simulator.stats()["paid"] == 1


def test_death_by_the_door_is_answered_and_needs_an_end() -> None:
    with running() as simulator:
        door = simulator.url + "/simulator/faults"
        assert requests.post(door, json={"is_dead": True}, timeout=5).status_code == 400
        answer = requests.post(door, json={"is_dead": True, "for_s": 0.3}, timeout=5)
        assert answer.json() == {"changed": ["for_s", "is_dead"]}
        statuses = [ask(simulator).status]
        while statuses[-1] != 200:
            statuses.append(ask(simulator).status)
        assert statuses[0] == 0


def test_a_simulator_that_is_dead_ends_as_any_other() -> None:
    simulator = running(is_dead=True)
    with simulator:
        assert ask(simulator).status == 0
    with pytest.raises(requests.ConnectionError):
        requests.get(simulator.url + "/v1/models", timeout=5)


def test_the_list_of_models_can_be_away_while_calls_are_answered() -> None:
    with running(models_status=502) as simulator:
        assert requests.get(simulator.url + "/v1/models", timeout=5).status_code == 502
        assert ask(simulator).status == 200


def test_the_series_shows_calls_refusals_and_calls_at_once_by_time() -> None:
    with running(refuse_above=3, latency_s=0.35, answer_tokens=9) as simulator:
        ask_at_once(simulator, 5, text="Hi")
        told = requests.get(simulator.url + "/simulator/series?every=1", timeout=5).json()
        assert told["every_s"] == 0.1
        rows = told["rows"]
        totals = {name: sum(row[name] for row in rows) for name in ("calls", "paid", "refused", "tokens")}
        assert totals == {"calls": 5, "paid": 3, "refused": 2, "tokens": 30}
        assert max(row["max_in_flight"] for row in rows) == 4
        assert sum(row["mean_in_flight"] for row in rows) * 0.1 == pytest.approx(3 * 0.35, rel=0.2)
        assert simulator.stats()["max_calls_per_s"] == 5
        assert simulator.series() and not simulator.reset()
        assert sum(row["calls"] for row in simulator.series()) == 0
        assert requests.get(simulator.url + "/simulator/series?by=1", timeout=5).status_code == 400
