"""What is asked before the first job, against endpoints of many shapes."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from api_client.simulator.config import SimulatorConfig
from api_client.simulator.thread import SimulatorThread
from tests.support.endpoints import HTML_PAGE, NO_MESSAGES, Open, Route, api
from worker.errors import InputError, KeyUnavailable, Refused, SettingsError, Unreachable
from worker.operations.errors import ModelMissing
from worker.operations.preflight import NOT_ASKED, ask_endpoint, check_models, choose_model
from worker.settings import KEY_SETTINGS, Settings, load_settings


def told(base_url: str, **settings: Any) -> Settings:
    if not settings.keys() & set(KEY_SETTINGS):
        settings["api_key"] = "k"
    return load_settings(base_url=base_url, _env_file=None, **settings)


@pytest.mark.parametrize(
    ("root", "end"),
    [
        ("/v1", ""),
        ("/v1", "/v1/"),
        ("/api/paas/v4", "/api/paas/v4"),
        ("/v1beta/openai", "/v1beta/openai/"),
        ("/openai/deployments/d", "/openai/deployments/d?api-version=2024-10-21"),
        ("/inference", "/inference/chat/completions"),
    ],
)
def test_what_is_asked_is_where_the_jobs_will_go_and_nothing_is_paid(
    serve: Open, root: str, end: str
) -> None:
    endpoint = serve(api(root))
    facts = ask_endpoint(told(endpoint.url + end))
    assert facts.models == ("m1",)
    query = f"?{end.partition('?')[2]}" if "?" in end else ""
    assert [(method, target) for method, target, _ in endpoint.requests] == [
        ("GET", f"{root}/models{query}"),
        ("POST", f"{root}/chat/completions{query}"),
    ]
    assert endpoint.paid() == 0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((404, {"error": {"message": "no such route"}}), "404"),
        ((404, b"<html><title>404 Not Found</title></html>"), "404 Not Found"),
        ((404, {"detail": "Cannot POST /models/v1/chat/completions"}), "404"),
        ((405, {"detail": "Method Not Allowed"}), "405"),
        ((410, {}), "410"),
        ((501, {}), "501"),
        ((302, b""), "redirects"),
        ((308, b""), "redirects"),
        (HTML_PAGE, "HTML page"),
    ],
    ids=str,
)
@pytest.mark.parametrize("has_models", [True, False])
def test_a_chat_address_where_nobody_is_is_named_at_once(
    serve: Open, answer: Route, words: str, has_models: bool
) -> None:
    routes = api("/models/v1", answer=answer)
    if not has_models:
        del routes["GET /models/v1/models"]
    endpoint = serve(routes)
    with pytest.raises(Unreachable, match="ANTREAN_BASE_URL") as caught:
        ask_endpoint(told(f"{endpoint.url}/models"))
    assert f"{endpoint.url}/models/v1/chat/completions" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("root", "given", "said"),
    [
        ("/inference", "/inference", "/inference/chat/completions"),
        ("/api/v3/v1", "/api/v3", "/api/v3/v1"),
        ("/v1", "/chat", ""),
        ("/api/v1", "", "/api"),
    ],
)
def test_the_sentence_names_the_address_where_somebody_is(
    serve: Open, root: str, given: str, said: str
) -> None:
    endpoint = serve(api(root))
    with pytest.raises(Unreachable) as caught:
        ask_endpoint(told(endpoint.url + given))
    assert str(caught.value).endswith(f"answers: set it to {endpoint.url}{said})")
    assert endpoint.paid() == 0


@pytest.mark.parametrize(
    "answer",
    [
        NO_MESSAGES,
        (400, b"bad"),
        (403, {"message": "blocked"}),
        (404, {"error": {"message": "The model `` does not exist", "code": "model_not_found"}}),
        (404, {"error": "model '' not found, try pulling it first"}),
        (409, {}),
        (413, {}),
        (415, {}),
        (422, {"detail": [{"loc": ["body", "messages"], "msg": "Field required"}]}),
        (429, {"error": {"message": "slow down"}}),
        (500, {}),
        (502, b"<html><title>502 Bad Gateway</title></html>"),
        (503, {}),
        (200, {"choices": []}),
    ],
    ids=str,
)
def test_any_other_answer_says_that_somebody_is_there(serve: Open, answer: Route) -> None:
    endpoint = serve(api("/v1", answer=answer))
    assert ask_endpoint(told(endpoint.url)).models == ("m1",)


def test_a_key_that_only_the_chat_address_refuses_is_refused_at_once(serve: Open) -> None:
    endpoint = serve(api("/v1", answer=(401, {"error": {"message": "no"}})))
    with pytest.raises(Refused, match="ANTREAN_API_KEY"):
        ask_endpoint(told(endpoint.url))


ODD_LISTS: dict[str, Route] = {
    "null": (200, {"object": "list", "data": None}),
    "text": (200, "m1"),
    "object": (200, {"m1": {}}),
    "403": (403, {"error": {"message": "Missing scopes: api.model.read"}}),
    "404": (404, {"error": {"message": "no such route"}}),
    "405": (405, {}),
    "429": (429, {"error": {"message": "slow down"}}),
    "500": (500, b"oops"),
    "503": (503, {}),
    "html": HTML_PAGE,
    "redirect": (302, b""),
}


@pytest.mark.parametrize("odd", ODD_LISTS.values(), ids=ODD_LISTS)
def test_a_list_that_is_none_warns_in_one_line_and_does_not_stop_a_named_model(
    serve: Open, odd: Route
) -> None:
    facts = ask_endpoint(told(serve(api("/v1", models=odd)).url))
    assert facts.models is None
    assert choose_model("m1", facts) == "m1"
    (doubt,) = check_models(["m1"], facts)
    assert "does not list its models" in doubt and "m1" in doubt and "\n" not in doubt
    with pytest.raises(InputError, match="ANTREAN_MODEL"):
        choose_model(None, facts)


@pytest.mark.parametrize(
    "listed",
    [
        [{"id": "m1"}, {"id": "m2"}],
        ["m1", "m2"],
        {"models": [{"name": "m1", "model": "m1"}, {"name": "m2"}]},
        {"models": ["m1", "m2"], "data": None},
        {"data": [{"model": "m1"}, {"name": "m2"}, {"id": 5}, None, {}, {"id": ""}, {"id": "m1"}]},
        {"data": {"models": [{"id": "m1"}, {"id": "m2"}]}},
        {"result": [{"name": "m1"}, {"name": "m2"}]},
    ],
    ids=str,
)
def test_a_list_of_any_shape_is_read(serve: Open, listed: Any) -> None:
    facts = ask_endpoint(told(serve(api("/v1", models=(200, listed))).url))
    assert facts.models == ("m1", "m2")
    assert check_models(["m1"], facts) == []


def test_a_model_that_is_not_in_the_list_may_be_an_alias_and_warns_in_one_line(serve: Open) -> None:
    endpoint = serve(api("/v1", models=(200, {"data": [{"id": "models/m1"}, {"id": "other"}]})))
    facts = ask_endpoint(told(endpoint.url))
    assert choose_model("m1", facts) == "m1"
    (doubt,) = check_models(["m1", "other"], facts)
    assert "models/m1, other" in doubt and "\n" not in doubt
    assert endpoint.paid() == 0


def test_a_model_that_the_endpoint_itself_does_not_know_is_refused(serve: Open) -> None:
    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        if request.get("model") in (None, "m1"):
            return NO_MESSAGES
        return 404, {"error": {"message": f"The model `{request['model']}` does not exist"}}

    for models in ((200, {"data": [{"id": "m1"}]}), (404, {})):
        facts = ask_endpoint(told(serve(api("/v1", models=models, answer=answer)).url))
        assert choose_model("m1", facts) == "m1"
        with pytest.raises(Refused, match="m2"):
            choose_model("m2", facts)
        with pytest.raises(Refused, match="m2"):
            check_models(["m1", "m2"], facts)


def test_a_complaint_about_messages_that_quotes_the_model_refuses_no_model(serve: Open) -> None:
    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        return 422, {"detail": [{"loc": ["body", "messages"], "msg": "Field required", "input": request}]}

    facts = ask_endpoint(told(serve(api("/v1", models=(200, ["other"]), answer=answer)).url))
    assert choose_model("m1", facts) == "m1"


def test_nothing_is_asked_of_an_endpoint_that_is_not_to_be_asked() -> None:
    assert choose_model("m1", NOT_ASKED) == "m1"
    assert check_models(["m1"], NOT_ASKED) == []
    with pytest.raises(ModelMissing, match="ANTREAN_MODEL"):
        choose_model(None, NOT_ASKED)


def test_of_many_models_a_sentence_names_twenty(serve: Open) -> None:
    endpoint = serve(api("/v1", models=(200, [f"m{n}" for n in range(300)])))
    with pytest.raises(InputError, match="m19, and 280 more"):
        choose_model(None, ask_endpoint(told(endpoint.url)))


def test_an_endpoint_that_answers_nothing_at_all_is_a_sentence_and_no_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        is_over = threading.Event()

        def shut_the_door() -> None:
            while not is_over.is_set():
                listener.accept()[0].close()

        thread = threading.Thread(target=shut_the_door, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(Unreachable, match="ANTREAN_BASE_URL"):
            ask_endpoint(told(url))
        is_over.set()
        socket.create_connection(listener.getsockname()).close()
        thread.join(5)


def test_a_proxy_that_cannot_be_one_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:notaport")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(SettingsError, match="proxy"):
        ask_endpoint(told("http://endpoint.example"))


@pytest.mark.parametrize(
    ("answer", "is_up"),
    [
        (NO_MESSAGES, True),
        ((200, {"choices": []}), True),
        ((403, {}), True),
        ((429, {}), False),
        ((402, {}), False),
        ((500, {}), False),
        ((503, {}), False),
    ],
    ids=str,
)
@pytest.mark.parametrize("models", [(200, {"data": [{"id": "m1"}]}), (503, {})], ids=["listed", "503"])
def test_an_endpoint_that_is_there_and_busy_is_not_up(
    serve: Open, models: Route, answer: Route, is_up: bool
) -> None:
    """Who would wake those who wait for it looks at this."""
    assert ask_endpoint(told(serve(api("/v1", models=models, answer=answer)).url)).is_up is is_up


def test_a_command_that_gives_no_key_is_a_sentence_before_anything_is_asked(serve: Open) -> None:
    endpoint = serve(api("/v1"))
    with pytest.raises(
        KeyUnavailable, match="ANTREAN_API_KEY_COMMAND ended with exit code 3; run it in a shell"
    ):
        ask_endpoint(told(endpoint.url, api_key_command="sh -c 'exit 3'"))
    assert endpoint.requests == []
    assert ask_endpoint(told(endpoint.url, api_key_command="echo k")).models == ("m1",)


def test_each_of_several_keys_is_asked_with_and_the_refused_ones_are_named() -> None:
    with SimulatorThread(SimulatorConfig(latency_s=0.0, key="sk-b,sk-c")) as simulator:
        facts = ask_endpoint(told(simulator.url, api_keys="sk-a,sk-b,sk-c,sk-d"))
        assert facts.refused_keys == ("ANTREAN_API_KEYS, key 1", "ANTREAN_API_KEYS, key 4")
        assert [one.key for one in facts.accepted] == ["sk-b", "sk-c"]
        assert facts.is_up
        assert "sk-" not in repr(facts)
        with pytest.raises(Refused, match="it refuses the key: check ANTREAN_API_KEYS"):
            ask_endpoint(told(simulator.url, api_keys="sk-a,sk-d"))


def test_where_the_endpoint_does_not_answer_one_key_no_other_is_waited_for(serve: Open) -> None:
    endpoint = serve(api("/v1", models=(503, {"message": "busy"})))
    ask_endpoint(told(endpoint.url, api_keys="sk-a,sk-b,sk-c"), with_chat=False)
    assert len(endpoint.requests) == 1
