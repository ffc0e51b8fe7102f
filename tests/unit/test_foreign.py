"""Messages of other programs, made harmless: nothing of them breaks who reads them, and none with an id vanishes."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.mutants import ODD_VALUES, REQUEST, encode, first_protocol, message, mutants, nested
from worker.broker.hints import HINT_HEADER, LONE_QUEUE, TASK, write_hint
from worker.consume.delivery import read_message
from worker.consume.foreign import (
    NOT_BEFORE_HEADER,
    REFUSED_HEADER,
    OfAnother,
    Payload,
    Unusable,
    read_foreign,
    read_fragments,
    read_hint,
)
from worker.settings import Settings, load_settings
from worker.storage.intake import NewJob


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return load_settings(home=tmp_path_factory.mktemp("home"), _env_file=None)


def read(made: Any, **options: str) -> Payload:
    raw = made if isinstance(made, bytes) else json.dumps(made).encode()
    return read_foreign(raw, **{"queue": LONE_QUEUE, "tag": "t-1", **options})


def adopted(payload: Payload, told: Settings) -> NewJob | None:
    """The job that becomes of it."""
    headers = payload["headers"]
    assert payload.decoded is not None
    args, kwargs, embedded = payload.decoded
    request = SimpleNamespace(
        id=headers["id"],
        request_dict={
            **headers,
            "delivery_info": {
                **payload["properties"]["delivery_info"],
                "priority": payload["properties"]["priority"],
            },
        },
        args=args,
        kwargs=kwargs,
        embedded=embedded,
    )
    found = read_message(request, told)
    return found if isinstance(found, NewJob) else None


def test_a_sound_message_keeps_what_it_asks_for(told: Settings) -> None:
    made = message("a-1")
    made["headers"] |= {
        "eta": "2030-01-01T00:00:00",
        "expires": "2031-01-01T00:00:00",
        "group": "g",
        "group_index": 3,
    }
    made["properties"]["priority"] = 4
    payload = read(made)
    assert REFUSED_HEADER not in payload["headers"]
    assert payload["headers"][NOT_BEFORE_HEADER] == "2030-01-01T00:00:00"
    assert payload["headers"]["expires"] == "2031-01-01T00:00:00+00:00"
    assert payload["headers"]["eta"] is None
    assert payload["properties"]["delivery_tag"] == "t-1"
    job = adopted(payload, told)
    assert job is not None
    assert (job.id, job.priority, job.ended_as) == ("a-1", 4, None)
    assert json.loads(job.body) == REQUEST


def test_the_first_protocol_is_read_as_the_second(told: Settings) -> None:
    job = adopted(read(first_protocol("old-1")), told)
    assert job is not None
    assert (job.id, job.ended_as) == ("old-1", None)
    assert json.loads(job.body) == REQUEST


@pytest.mark.parametrize(
    ("task", "name"),
    [("their.task", "their.task"), (None, None), (5, None), ("two words", None), (..., None)],
)
def test_what_another_app_sent_is_another_apps_and_told_by_its_name_only(task: Any, name: str | None) -> None:
    with pytest.raises(OfAnother) as caught:
        read(change("headers", "task", value=task))
    assert caught.value.task == name


def test_so_is_what_it_sent_in_the_first_protocol_as_pickle_or_nested_deep() -> None:
    old = first_protocol("b-1")
    old["body"] = encode({"task": "their.task", "id": "b-1", "args": [], "kwargs": {}})
    pickled = message("b-2") | {
        "headers": {"task": "their.task", "id": "b-2"},
        "content-type": "application/x-python-serialize",
    }
    deep = b'{"headers": {"task": "their.task", "x": ' + nested(5000) + b"}}"
    for made in (old, pickled, deep):
        with pytest.raises(OfAnother):
            read(made)


def change(*path: str, value: Any) -> dict[str, Any]:
    made = message("c-1")
    where: Any = made
    for name in path[:-1]:
        where = where[name]
    if value is ...:
        del where[path[-1]]
    else:
        where[path[-1]] = value
    return made


def body(args: Any = (), kwargs: Any = None, embedded: Any = None) -> str:
    return encode([args, {} if kwargs is None else kwargs, embedded])


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (change("headers", "compression", value="zlib"), "compress"),
        (change("headers", "compression", value=["bzip2"]), "compress"),
        (change("content-type", value="application/x-python-serialize"), "content-type"),
        (change("content-type", value=...), "content-type"),
        (change("content-type", value=["application/json"]), "content-type"),
        (change("body", value=...), "text"),
        (change("body", value=[1]), "text"),
        (change("body", value="%%%"), "JSON"),
        (change("body", value="/////w=="), "UTF-8"),
        (change("body", value="e30"), "base64"),
        (change("body", value=encode({})), "arguments"),
        (change("body", value=encode([1, 2, 3])), "arguments"),
        (change("body", value=encode([[], {}, 5])), "arguments"),
        (change("body", value=encode(None)), "arguments"),
        (change("properties", "body_encoding", value="gzip"), "base64"),
        (change("body", value=body(kwargs={"request": {"__type__": "x", "__value__": 1}})), "__type__"),
        (change("body", value=body(kwargs={"request": {"__type__": [], "__value__": 1}})), "__type__"),
        (change("body", value=body(kwargs={"request": {"__type__": "uuid", "__value__": 5}})), "__type__"),
        (change("body", value=body(kwargs={"request": {"__type__": "decimal", "__value__": {}}})), "__type__"),
        (change("headers", "expires", value="soon"), "expires"),
        (change("headers", "expires", value=[1]), "expires"),
        (change("headers", "expires", value=5), "expires"),
        (change("headers", "expires", value="9999-12-31T23:59:59-14:00"), "expires"),
        (change("headers", "eta", value="soon"), "eta"),
        (change("headers", "eta", value={}), "eta"),
        (change("headers", "eta", value=1e300), "eta"),
        (change("properties", "priority", value="high"), "priority"),
        (change("properties", "priority", value=1e400), "priority"),
        (change("headers", "id", value="a" * 5000), "task_id"),
        (change("headers", "id", value="a\nb"), "task_id"),
        (change("headers", "id", value="a\ud800"), "task_id"),
        (change("body", value=body(kwargs={"request": REQUEST, "self": 1})), "no option"),
        (change("body", value=body(kwargs={"request": REQUEST, "job_id": 5})), "job_id"),
        (change("body", value=body(kwargs={"request": REQUEST, "job_id": "a\0"})), "job_id"),
        (change("body", value=body([REQUEST] * 3)), "positional"),
        (change("body", value=body(kwargs={"request": REQUEST}, embedded={"chain": float("nan")})), "callbacks"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_a_sentence(made: Any, words: str, told: Settings) -> None:
    job = adopted(read(made), told)
    assert job is not None
    assert job.ended_as == "failed"
    assert words in str(job.failure_message)
    assert 0 < len(job.id) <= 255 and job.id.isprintable()


@pytest.mark.parametrize("levels", [101, 300, 1000, 100_000])
def test_nesting_is_refused_wherever_it_is(levels: int, told: Settings) -> None:
    deep = nested(levels)
    text = json.dumps([[], {"request": REQUEST}, None]).encode()
    inside = change("body", value="")
    inside["properties"]["body_encoding"] = None
    inside["body"] = text.replace(b'"Say one."', deep).decode()
    outside = json.dumps(message("c-1")).encode().replace(b'"gen1@host"', deep)
    for made in (inside, outside):
        job = adopted(read(made), told)
        assert job is not None
        assert (job.id, job.ended_as) == ("c-1", "failed")
        assert "nested" in str(job.failure_message)


@pytest.mark.parametrize("tag", [None, True, 5, ["x"], "", ...])
@pytest.mark.parametrize("info", [None, [], {}, {"routing_key": 5, "exchange": ["x"]}, ...])
def test_where_it_says_to_be_from_is_not_believed(tag: Any, info: Any, told: Settings) -> None:
    made = change("properties", "delivery_tag", value=tag)
    if info is ...:
        del made["properties"]["delivery_info"]
    else:
        made["properties"]["delivery_info"] = info
    payload = read(made, queue="antrean.bulk", tag="mine")
    assert payload["properties"]["delivery_tag"] == "mine"
    assert payload["properties"]["delivery_info"]["routing_key"] == "antrean.bulk"
    job = adopted(payload, told)
    assert job is not None
    assert job.ended_as is None


@pytest.mark.parametrize(
    "made",
    [
        b"", b"5", b"[]", b"null", b'"x"', b"{", b"\xff", b"{}", b'{"properties": 5}', nested(100_000),
        change("headers", "id", value=None), change("headers", "id", value=[1]), change("headers", "id", value=""),
        change("headers", "id", value=True), change("headers", "id", value=1.5), change("headers", "id", value=...),
    ],
)  # fmt: skip
def test_what_is_no_message_or_has_no_id_is_unusable_and_says_why(made: Any) -> None:
    with pytest.raises(Unusable) as caught:
        read(made)
    assert caught.value.why


def test_a_number_is_an_id(told: Settings) -> None:
    job = adopted(read(message(17)), told)
    assert job is not None
    assert job.id == "17"


def test_the_id_of_a_message_that_was_cut_is_found_at_either_end(told: Settings) -> None:
    raw = json.dumps(message("d-1")).encode()
    for cut in (raw[-600:], raw.replace(b'"Say', b"")[10:]):
        job = adopted(read_fragments(cut, "it is too large", queue=LONE_QUEUE, tag="t"), told)
        assert job is not None
        assert (job.id, job.ended_as, job.failure_message) == ("d-1", "failed", "it is too large")
    with pytest.raises(Unusable):
        read_fragments(raw.replace(TASK.encode(), b"their.task"), "why", queue=LONE_QUEUE, tag="t")


def test_a_hint_is_read_as_it_is_written_and_nothing_else_is_one() -> None:
    raw = write_hint("j-1", queue=LONE_QUEUE, priority=3)
    assert read_hint(raw) == json.loads(raw)
    for broken in (
        b"x" + raw,
        raw.replace(b'"id":"j-1"', b'"id":5'),
        raw.replace(b'"delivery_tag":"', b'"delivery_tag":null,"x":"'),
        raw.replace(b'"delivery_info"', b'"delivery"'),
        raw.replace(TASK.encode(), b"their.task"),
        raw.replace(b'"j-1"', b'"' + b"a" * 5000 + b'"'),
        b'{"antrean_hint":1}',
    ):
        assert read_hint(broken) is None


def test_a_foreign_message_is_no_hint_whatever_it_says(told: Settings) -> None:
    made = message("e-1")
    made["headers"][HINT_HEADER] = 1
    assert read_hint(orjson.dumps(made)) is None
    payload = read(made)
    assert HINT_HEADER not in payload["headers"]
    job = adopted(payload, told)
    assert job is not None
    assert job.ended_as is None


def assert_harmless(raw: bytes, told: Settings) -> None:
    try:
        payload = read_foreign(raw, queue=LONE_QUEUE, tag="t")
    except Unusable:
        return
    assert payload.decoded is not None
    headers, properties = payload["headers"], payload["properties"]
    json.dumps(payload)
    assert isinstance(headers["id"], str) and 0 < len(headers["id"]) <= 255 and headers["id"].isprintable()
    assert (headers["task"], headers["eta"], headers["timelimit"]) == (TASK, None, [None, None])
    assert properties["delivery_info"]["routing_key"] == LONE_QUEUE
    args, kwargs, embedded = payload.decoded
    assert isinstance(args, list) and isinstance(kwargs, dict) and isinstance(embedded, dict)
    job = adopted(payload, told)
    if job is None:
        assert kwargs.get("job_id") is not None
        return
    assert job.id == headers["id"]
    assert len(job.body.encode()) <= 16 * 1024 or job.ended_as is None
    assert job.ended_as is None or job.failure_message
    assert len(job.failure_message or "") <= 4000
    for number in (job.priority, job.max_attempts or 0):
        assert abs(number) < 2**31
    for number in (job.expires_at_ms or 0, job.not_before_ms or 0):
        assert abs(number) < 2**63
    for text in (job.batch_id, job.custom_id or "", job.model):
        text.encode()
        assert "\0" not in text and len(text) <= 512
    for extra in (job.user_metadata, job.envelope):
        json.dumps(extra, allow_nan=False).encode()


@pytest.mark.parametrize("seed", range(4))
def test_no_mutant_breaks_who_reads_it(seed: int, told: Settings) -> None:
    for raw in mutants(seed, 400, prefix="m"):
        assert_harmless(raw, told)


VALUES = st.recursive(
    st.sampled_from(ODD_VALUES) | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
HEADERS = st.dictionaries(st.sampled_from(sorted(message("x")["headers"])), VALUES, max_size=4)
PROPERTIES = st.dictionaries(st.sampled_from(sorted(message("x")["properties"])), VALUES, max_size=3)
KWARGS = st.dictionaries(
    st.sampled_from(["request", "custom_id", "batch", "max_attempts", "metadata", "job_id"]),
    VALUES,
    max_size=3,
)


@settings(max_examples=200, deadline=None)
@given(HEADERS, PROPERTIES, KWARGS, st.booleans())
def test_nothing_that_a_message_may_hold_breaks_who_reads_it(
    told: Settings, headers: dict[str, Any], properties: dict[str, Any], kwargs: dict[str, Any], in_text: bool
) -> None:
    made = message("h-1")
    made["headers"] |= headers
    made["properties"] |= properties
    made["body"] = encode([[], {"request": REQUEST} | kwargs, {}])
    if in_text:
        made["body"] = json.dumps([[], {"request": REQUEST} | kwargs, {}])
    assert_harmless(json.dumps(made).encode(), told)
