"""The simulator answers what the endpoint's page shows, to plain HTTP and to the official client."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import requests

from api_client.simulator import SimulatorConfig, SimulatorThread, expected_usage

KEY = "sk-simulated"
REQUEST: dict[str, Any] = {
    "model": "DeepSeek-V3.1",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Jakarta is a city. It is big! Where is it?"},
    ],
    "temperature": 0.7,
    "stream": False,
}


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorThread]:
    with SimulatorThread(SimulatorConfig(key=KEY, latency_s=0.0)) as running:
        yield running


def post(simulator: SimulatorThread, body: Any = REQUEST, **options: Any) -> requests.Response:
    options.setdefault("headers", {"Authorization": f"Bearer {KEY}"})
    return requests.post(simulator.url + "/v1/chat/completions", json=body, timeout=5, **options)


def test_a_completion_has_the_shape_that_the_page_shows(simulator: SimulatorThread) -> None:
    answer = post(simulator)
    completion = answer.json()
    content = completion["choices"][0]["message"]["content"]
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert re.fullmatch(r"resp-[0-9a-f]{32}", completion.pop("id"))
    assert isinstance(completion.pop("created"), int)
    assert completion == {
        "choices": [
            {
                "finish_reason": "stop",
                "index": 0,
                "message": {"content": content, "refusal": None, "tool_calls": None, "role": "assistant"},
            }
        ],
        "model": "DeepSeek-V3.1",
        "object": "chat.completion",
        "usage": expected_usage(REQUEST, content),
    }


def test_the_same_request_gets_the_same_reasoning_and_answer(simulator: SimulatorThread) -> None:
    contents = {post(simulator).json()["choices"][0]["message"]["content"] for _ in range(2)}
    assert len(contents) == 1
    reasoning, _, answer = contents.pop().partition("</think>")
    assert reasoning.startswith("<think>")
    assert answer.strip() == "Jakarta is a city. It is big! (10 words)"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_token_limit_cuts_the_completion_and_may_leave_the_reasoning_open(
    simulator: SimulatorThread, name: str
) -> None:
    completion = post(simulator, REQUEST | {name: 7}).json()
    choice = completion["choices"][0]
    assert choice["finish_reason"] == "length"
    assert "</think>" not in choice["message"]["content"]
    assert completion["usage"]["completion_tokens"] == 7
    assert completion["usage"] == expected_usage(REQUEST, choice["message"]["content"])


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_the_models_are_listed_with_and_without_v1(simulator: SimulatorThread, prefix: str) -> None:
    answer = requests.get(simulator.url + prefix + "/models", headers={"api-key": KEY}, timeout=5)
    assert answer.json() == {"data": [{"id": "DeepSeek-V3.1"}]}


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_the_official_client_lists_models_and_completes(simulator: SimulatorThread, prefix: str) -> None:
    with openai.OpenAI(api_key=KEY, base_url=simulator.url + prefix, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["DeepSeek-V3.1"]
        completion = client.chat.completions.create(**REQUEST)
    assert completion.usage is not None
    assert completion.usage.total_tokens > completion.usage.prompt_tokens > 0
    assert (completion.choices[0].message.content or "").startswith("<think>")


def test_the_official_client_sees_a_bad_key_as_its_authentication_error(simulator: SimulatorThread) -> None:
    with (
        openai.OpenAI(api_key="wrong", base_url=simulator.url, max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.chat.completions.create(**REQUEST)


def test_a_401_is_flat_and_carries_its_request_id_twice(simulator: SimulatorThread) -> None:
    answer = post(simulator, headers={"Authorization": "Bearer wrong"})
    assert answer.status_code == 401
    assert answer.json() == {"message": "Unauthorized", "request_id": answer.headers["x-request-id"]}
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])


@pytest.mark.parametrize(
    ("style", "accepted"),
    [("both", [200, 200, 401]), ("bearer", [200, 401, 401]), ("api-key", [401, 200, 401])],
)
def test_the_key_is_taken_from_the_header_styles_that_are_asked_for(style: Any, accepted: list[int]) -> None:
    with SimulatorThread(SimulatorConfig(key=KEY, latency_s=0.0, auth_header=style)) as simulator:
        headers: list[dict[str, str]] = [{"Authorization": f"Bearer {KEY}"}, {"api-key": KEY}, {}]
        assert [post(simulator, headers=each).status_code for each in headers] == accepted


def test_without_a_configured_key_nobody_needs_one() -> None:
    with SimulatorThread() as simulator:
        assert post(simulator, headers={}).status_code == 200


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"model": None}, 400, "model is required"),
        ({"model": "gpt-0"}, 404, "The model `gpt-0` does not exist"),
        ({"messages": []}, 400, "messages is required and must be a list that is not empty"),
        ({"messages": ["hello"]}, 400, "messages[0] must be an object with a role"),
        ({"temperature": 0}, 400, "temperature must be > 0"),
        ({"temperature": "warm"}, 400, "temperature must be > 0"),
        ({"stream": True}, 400, "stream is not simulated: leave it out or send false"),
        ({"max_tokens": 0}, 400, "max_tokens must be a whole number >= 1"),
        ({"n": 2}, 400, "n must be 1"),
    ],
)
def test_a_bad_request_is_refused_with_a_flat_sentence(
    simulator: SimulatorThread, changes: dict[str, Any], status: int, message: str
) -> None:
    answer = post(simulator, REQUEST | changes)
    assert answer.status_code == status
    assert answer.json() == {"message": message, "request_id": answer.headers["x-request-id"]}


def test_a_body_that_is_not_json_is_refused(simulator: SimulatorThread) -> None:
    answer = post(simulator, None, data=b"{not json")
    assert (answer.status_code, answer.json()["message"]) == (400, "the body is not valid JSON")


def test_a_wrong_path_is_404_and_a_wrong_method_405(simulator: SimulatorThread) -> None:
    wrong_path = requests.get(simulator.url + "/v2/models", timeout=5)
    wrong_method = requests.get(simulator.url + "/v1/chat/completions", timeout=5)
    assert (wrong_path.status_code, wrong_path.json()["message"]) == (404, "Not Found")
    assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "POST")
