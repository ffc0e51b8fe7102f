"""Each fault comes when it is asked for, as its kind, and is counted."""

from __future__ import annotations

import json
import socket
from typing import Any

import orjson
import pytest
import requests

from api_client.simulator import SimulatorConfig, SimulatorThread

REQUEST: dict[str, Any] = {"model": "DeepSeek-V3.1", "messages": [{"role": "user", "content": "Hello!"}]}


def post(simulator: SimulatorThread, *, job: str = "", key: str = "sk-a") -> requests.Response:
    headers = {"Authorization": f"Bearer {key}", "X-Antrean-Job": job}
    return requests.post(simulator.url + "/v1/chat/completions", json=REQUEST, headers=headers, timeout=5)


def running(**options: Any) -> SimulatorThread:
    return SimulatorThread(SimulatorConfig(**({"latency_s": 0.0} | options)))


def test_a_429_says_when_to_come_back() -> None:
    with running(rate_429=1.0, retry_after_s=2.0) as simulator:
        answer = post(simulator)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
        assert "retry-after-ms" not in answer.headers
        assert simulator.stats()["faults"] == {"429": 1}


def test_a_429_says_parts_of_a_second_in_milliseconds() -> None:
    with running(rate_429=1.0, retry_after_s=0.25) as simulator:
        headers = post(simulator).headers
        assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "250")


def test_a_bare_429_says_nothing_of_when() -> None:
    with running(rate_429_bare=1.0) as simulator:
        answer = post(simulator)
        assert answer.status_code == 429
        assert "retry-after" not in answer.headers


def test_a_500_is_flat() -> None:
    with running(rate_500=1.0) as simulator:
        answer = post(simulator)
        assert answer.status_code == 500
        assert answer.json() == {
            "message": "Internal Server Error",
            "request_id": answer.headers["x-request-id"],
        }


def test_an_outage_answers_every_call_with_a_page_of_its_status_until_it_is_over() -> None:
    with running(rate_500=1.0) as simulator:
        simulator.set_faults(outage_status=504)
        answer = post(simulator)
        assert (answer.status_code, answer.headers["content-type"]) == (504, "text/html; charset=utf-8")
        simulator.set_faults(outage_status=None)
        assert post(simulator).status_code == 500
        assert simulator.stats()["faults"] == {"outage": 1, "500": 1}


def test_a_502_is_a_page_of_html() -> None:
    with running(rate_502_html=1.0) as simulator:
        answer = post(simulator)
        assert answer.status_code == 502
        assert answer.headers["content-type"].startswith("text/html")
        assert answer.text.startswith("<html>")


def test_a_reset_is_a_connection_reset_by_peer() -> None:
    with running(rate_reset=1.0) as simulator:
        with pytest.raises(requests.ConnectionError, match="reset by peer"):
            post(simulator)
        assert simulator.stats()["faults"] == {"reset": 1}


def test_cut_json_is_a_200_of_the_promised_length_that_does_not_parse() -> None:
    with running(rate_cut_json=1.0) as simulator:
        answer = post(simulator, job="cut")
        assert answer.status_code == 200
        assert len(answer.content) == int(answer.headers["content-length"])
        with pytest.raises(requests.JSONDecodeError):
            answer.json()
        assert simulator.calls()["cut"]["paid"] == 0


def test_a_cut_body_is_shorter_than_promised() -> None:
    with running(rate_cut_body=1.0) as simulator, pytest.raises(requests.exceptions.ChunkedEncodingError):
        post(simulator)


def test_a_hanging_call_is_in_flight_until_its_client_goes_away() -> None:
    with running(rate_hang=1.0) as simulator:
        with pytest.raises(requests.ReadTimeout):
            requests.post(simulator.url + "/chat/completions", json=REQUEST, timeout=(5, 0.05))
        stats = simulator.wait_for(lambda stats: stats["in_flight"] == 0)
        assert (stats["faults"], stats["max_in_flight"], stats["paid"]) == ({"hang": 1}, 1, 0)


def test_a_drip_keeps_a_client_reading_for_longer_than_any_read_timeout() -> None:
    with running(rate_drip=1.0) as simulator:
        host, port = simulator.url.removeprefix("http://").split(":")
        body = orjson.dumps(REQUEST)
        with socket.create_connection((host, int(port)), timeout=5) as client:
            client.sendall(
                b"POST /chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
            )
            assert [client.recv(100) for _ in range(3)] == [b"H", b"T", b"T"]
            assert simulator.stats()["in_flight"] == 1
        stats = simulator.wait_for(lambda stats: stats["in_flight"] == 0)
        assert (stats["faults"], stats["paid"]) == ({"drip": 1}, 0)


@pytest.mark.parametrize(("fault", "start"), [("html", b"<!doctype html>"), ("empty", b"")])
def test_a_200_without_a_completion_is_not_paid_for(fault: str, start: bytes) -> None:
    with running(**{f"rate_{fault}": 1.0}) as simulator:
        answer = post(simulator, job="bad")
        assert (answer.status_code, answer.content[:15]) == (200, start)
        assert (simulator.stats()["faults"], simulator.calls()["bad"]["paid"]) == ({fault: 1}, 0)


@pytest.mark.parametrize(("fault", "odd"), [("nul", "\x00"), ("surrogate", "\ud83d")])
def test_a_completion_with_odd_text_is_valid_and_paid_for(fault: str, odd: str) -> None:
    with running(**{f"rate_{fault}": 1.0}) as simulator:
        content = json.loads(post(simulator, job="odd").content)["choices"][0]["message"]["content"]
        assert content.startswith(odd + "<think>")
        assert simulator.calls()["odd"]["paid"] == 1


def test_a_large_completion_has_ten_megabytes() -> None:
    with running(rate_large=1.0) as simulator:
        answer = post(simulator, job="large")
        assert 9_900_000 < len(answer.content) < 11_000_000
        assert answer.json()["choices"][0]["finish_reason"] == "stop"
        assert simulator.calls()["large"]["paid"] == 1


def test_a_fault_rate_mixes_every_fault_but_hangs() -> None:
    with running(fault_rate=1.0, seed=7) as simulator, requests.Session() as session:
        for _ in range(100):
            try:
                session.post(simulator.url + "/v1/chat/completions", json=REQUEST, timeout=5)
            except requests.RequestException:
                continue
        faults = simulator.stats()["faults"]
        assert set(faults) == {"429", "429_bare", "500", "502_html", "reset", "cut_json", "cut_body"}
        assert sum(faults.values()) == 100


def test_a_bad_request_is_refused_whatever_the_faults() -> None:
    with running(rate_500=1.0) as simulator:
        answer = requests.post(simulator.url + "/v1/chat/completions", json={}, timeout=5)
        assert answer.status_code == 400
        assert simulator.stats()["refused"] == {"400": 1}


def test_the_rate_limit_holds_for_each_key_and_says_how_long() -> None:
    with running(rpm=2) as simulator:
        answers = [post(simulator, key="sk-a") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert 58 <= int(answers[2].headers["retry-after"]) <= 60
        assert post(simulator, key="sk-b").status_code == 200
        assert simulator.stats()["faults"] == {"rpm": 1}


def test_everything_is_unauthorized_for_a_while_after_the_start() -> None:
    with running(unauthorized_for_s=3600.0) as simulator:
        answer = post(simulator)
        assert answer.status_code == 401
        assert answer.json() == {"message": "Unauthorized", "request_id": answer.headers["x-request-id"]}
        assert requests.get(simulator.url + "/v1/models", timeout=5).status_code == 401
        assert simulator.stats()["faults"] == {"401": 1}
        simulator.set_faults(unauthorized_for_s=0)
        assert post(simulator).status_code == 200
