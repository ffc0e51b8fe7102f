"""Base URLs: where calls go, and what jobs are filed under."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_client.config import EndpointConfig
from schemas.address import other_addresses, parse_address
from worker.errors import SettingsError
from worker.settings import load_settings


@pytest.mark.parametrize(
    ("base_url", "chat_url"),
    [
        ("https://h", "https://h/v1/chat/completions"),
        ("https://h/api", "https://h/api/v1/chat/completions"),
        ("https://h/openai", "https://h/openai/v1/chat/completions"),
        ("https://h/inference", "https://h/inference/v1/chat/completions"),
        ("https://h/v1", "https://h/v1/chat/completions"),
        ("https://h/openai/v1/", "https://h/openai/v1/chat/completions"),
        ("https://h/compatible-mode/v1", "https://h/compatible-mode/v1/chat/completions"),
        ("https://h/client/v4/accounts/ID/ai/v1", "https://h/client/v4/accounts/ID/ai/v1/chat/completions"),
        ("https://h/api/paas/v4", "https://h/api/paas/v4/chat/completions"),
        ("https://h/api/v3/", "https://h/api/v3/chat/completions"),
        ("https://h/v2", "https://h/v2/chat/completions"),
        ("https://h/v4/v1", "https://h/v4/v1/chat/completions"),
        ("https://h/v1beta", "https://h/v1beta/chat/completions"),
        ("https://h/v1alpha1", "https://h/v1alpha1/chat/completions"),
        ("https://h/v1beta/openai", "https://h/v1beta/openai/chat/completions"),
        ("https://h/v1beta/openai/", "https://h/v1beta/openai/chat/completions"),
        ("https://h/v1/openai", "https://h/v1/openai/chat/completions"),
        ("https://h/v1-openai", "https://h/v1-openai/chat/completions"),
        (
            "https://h/v1/projects/p/locations/l/endpoints/openapi",
            "https://h/v1/projects/p/locations/l/endpoints/openapi/chat/completions",
        ),
        (
            "https://h/openai/deployments/gpt?api-version=2024-10-21",
            "https://h/openai/deployments/gpt/chat/completions?api-version=2024-10-21",
        ),
        ("https://h/openai/deployments/gpt/", "https://h/openai/deployments/gpt/chat/completions"),
        (
            "https://h/openai/v1/?api-version=preview",
            "https://h/openai/v1/chat/completions?api-version=preview",
        ),
        ("https://h/models?api-version=1", "https://h/models/chat/completions?api-version=1"),
        ("https://h?tenant=a", "https://h/v1/chat/completions?tenant=a"),
        ("https://h/v1?tenant=a&x=%20", "https://h/v1/chat/completions?tenant=a&x=%20"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1/chat/completions"),
    ],
)
def test_v1_is_added_only_to_an_address_without_a_version_and_a_query_goes_behind_the_path(
    base_url: str, chat_url: str
) -> None:
    assert parse_address(base_url).chat_url == chat_url
    assert EndpointConfig(base_url).address.models_url == chat_url.replace("/chat/completions", "/models")


@pytest.mark.parametrize(
    ("pasted", "base_url"),
    [
        ("https://h/v1/chat/completions", "https://h"),
        ("https://h/v1/chat/completions/", "https://h"),
        ("https://h/api/paas/v4/chat/completions", "https://h/api/paas/v4"),
        ("https://h/chat/completions", "https://h/chat/completions"),
        ("https://h/inference/chat/completions", "https://h/inference/chat/completions"),
        (
            "https://h/openai/deployments/gpt/chat/completions?api-version=1",
            "https://h/openai/deployments/gpt?api-version=1",
        ),
    ],
)
def test_a_whole_chat_address_is_taken_as_it_is(pasted: str, base_url: str) -> None:
    address = parse_address(pasted)
    assert (address.chat_url, address.base_url) == (pasted.rstrip("/"), base_url)


@pytest.mark.parametrize(
    "path", ["", "/", "/v1", "/v1/", "/api", "/api/v1/", "/v4", "/v4/v1", "/api/v3/v1/", "/v2/"]
)
def test_jobs_stay_filed_under_what_their_address_was_called_before_versions_were_known(path: str) -> None:
    given = f"https://h{path}"
    assert load_settings(base_url=given, _env_file=None).endpoint == given.rstrip("/").removesuffix("/v1")


_SEGMENTS = st.sampled_from(
    [
        "v1",
        "v2",
        "v1beta",
        "openai",
        "deployments",
        "api",
        "x",
        "chat",
        "completions",
        "endpoints",
        "openapi",
        "",
    ]
)


@given(st.lists(_SEGMENTS, max_size=6), st.sampled_from(["", "?", "?api-version=1", "?a=b"]))
def test_what_a_child_process_is_told_means_the_same_address(segments: list[str], query: str) -> None:
    address = parse_address("https://h/" + "/".join(segments) + query)
    assert parse_address(address.base_url) == address


@pytest.mark.parametrize(
    ("base_url", "words"),
    [
        ("h.example/v1", "http:// or https://"),
        ("ftp://h", "http:// or https://"),
        ("https://", "http:// or https://"),
        ("http://h:99999/v1", "port"),
        ("http://h:x", "port"),
        ("http://[::1", "host"),
        ("http://*.h", "host"),
        ("http://h..x", "host"),
        ("http://a b", "host"),
        ("http://" + "h" * 64, "host"),
        ("https://u:pw@h", "ANTREAN_API_KEY"),
        ("https://h#x", "fragment"),
        ("https://h?key=pw", "ANTREAN_API_KEY"),
        ("https://h?a=1&api-key=pw", "ANTREAN_API_KEY"),
        ("https://h?subscription-key=pw", "ANTREAN_API_KEY"),
        ("https://h?access_token=pw", "ANTREAN_API_KEY"),
    ],
)
def test_an_address_that_no_call_can_go_to_is_one_sentence_without_a_secret(
    base_url: str, words: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(base_url=base_url, _env_file=None)
    (problem,) = caught.value.problems
    assert problem.startswith("ANTREAN_BASE_URL: ")
    assert words in problem
    assert "pw" not in problem
    with pytest.raises(ValueError, match="base_url"):
        EndpointConfig(base_url)


def test_other_addresses_of_an_api_are_with_and_without_v1_and_at_the_top() -> None:
    def others(base_url: str) -> list[Any]:
        return [other.base_url for other in other_addresses(parse_address(base_url))]

    assert others("https://h/inference")[0] == "https://h/inference/chat/completions"
    assert others("https://h/api/v3")[:2] == ["https://h/api/v3/v1", "https://h"]
    assert others("https://h/api?a=b")[0] == "https://h/api/chat/completions?a=b"
