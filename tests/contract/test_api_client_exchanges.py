"""Whose answer an answer is: no byte of one exchange ever reaches another."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api_client.answers import Answer
from api_client.client import EndpointClient
from api_client.config import Credential, EndpointConfig
from api_client.errors import ApiError
from schemas.failure import FailureKind
from tests.support.wire import Asked, Speaker, WireServer, chunked, echo_of, framed

NO_KEY = Credential(None)


def client_of(server: WireServer, **limits: float) -> EndpointClient:
    return EndpointClient(EndpointConfig(server.base_url, **({"deadline_s": 20.0} | limits)))  # type: ignore[arg-type]


def ask(client: EndpointClient, text: str) -> Answer:
    body = json.dumps({"model": "m1", "messages": [{"role": "user", "content": text}]}).encode()
    return client.complete(body, credential=NO_KEY)


def text_of(client: EndpointClient, text: str) -> str:
    content = ask(client, text).completion.choices[0].message.content
    assert isinstance(content, str)
    return content


def saying(*makers: Callable[[str], bytes]) -> Callable[[Speaker, Asked], bool]:
    """Answers request n as maker n says, the last one for all that follow; the connection stays open."""
    count = 0

    def answer(speaker: Speaker, asked: Asked) -> bool:
        nonlocal count
        maker = makers[min(count, len(makers) - 1)]
        count += 1
        speaker.say(maker(asked.text))
        return True

    return answer


def well(text: str) -> bytes:
    return framed(echo_of(text))


INTERIMS = [
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 102 Processing\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\nLink: </a.js>\r\n\r\n",
    b"HTTP/1.1 104\r\n\r\n",
    b"HTTP/1.0 199 Anything at all\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 110 \nX: y\n\n",
    b"HTTP/1.1 102 Processing\r\n\r\n" * 150,
]


@pytest.mark.parametrize("interim", INTERIMS)
@pytest.mark.parametrize("is_in_one_packet", [True, False])
def test_an_interim_answer_is_read_past_and_the_connection_is_used_again(
    interim: bytes, is_in_one_packet: bool
) -> None:
    def answer(speaker: Speaker, asked: Asked) -> bool:
        if is_in_one_packet:
            speaker.say(interim + well(asked.text))
        else:
            speaker.say(interim, pause_s=0.05)
            speaker.say(well(asked.text))
        return True

    with WireServer(answer) as server:
        client = client_of(server)
        assert [text_of(client, f"q{n}") for n in range(4)] == [f"echo q{n}" for n in range(4)]
        assert server.accepted == 1 and set(server.calls.values()) == {1}


def test_an_interim_answer_may_be_cut_at_any_byte() -> None:
    whole = b"".join(INTERIMS[:4])

    def answer(speaker: Speaker, asked: Asked) -> bool:
        data = whole + well(asked.text)
        at = int(asked.text)
        speaker.say(data[:at], pause_s=0.001)
        speaker.say(data[at:])
        return True

    with WireServer(answer) as server:
        client = client_of(server)
        for at in range(0, len(whole) + 60):
            assert text_of(client, str(at)) == f"echo {at}"
        assert server.accepted == 1


def test_switching_protocols_is_a_bad_response_and_its_connection_is_closed() -> None:
    upgrade = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"
    with WireServer(saying(lambda text: upgrade + well("of another"), well)) as server:
        client = client_of(server)
        with pytest.raises(ApiError) as caught:
            ask(client, "a")
        assert caught.value.failure.kind is FailureKind.BAD_RESPONSE
        assert text_of(client, "b") == "echo b" and server.accepted == 2


STALE = framed(echo_of("of another"))
DOUBTFUL: dict[str, Callable[[str], bytes]] = {
    "a second answer in the same packet": lambda text: well(text) + STALE,
    "one byte more than its length": lambda text: well(text) + b"x",
    "an empty line more": lambda text: well(text) + b"\r\n",
    "bytes after the last chunk": lambda text: chunked(echo_of(text)) + STALE,
    "a 204 with a body": lambda text: b"HTTP/1.1 204 No Content\r\n\r\n" + STALE,
    "a 205 with a body": lambda text: b"HTTP/1.1 205 Reset\r\nContent-Length: 0\r\n\r\n" + STALE,
    "a 304 with a body": lambda text: b"HTTP/1.1 304 Not Modified\r\n\r\n" + STALE,
    "length and chunks": lambda text: chunked(echo_of(text)).replace(
        b"Transfer-Encoding", b"Content-Length: 9\r\nTransfer-Encoding"
    ),
    "the length twice": lambda text: well(text).replace(
        b"Content-Length", b"Content-Length: %d\r\nContent-Length" % len(echo_of(text))
    ),
    "a length with a sign": lambda text: well(text).replace(b"Content-Length: ", b"Content-Length: +"),
    "a folded header": lambda text: well(text).replace(b"\r\n\r\n", b"\r\nX: a\r\n b\r\n\r\n", 1),
    "a header without a colon": lambda text: well(text).replace(b"\r\n", b"\r\njunk\r\n", 1),
    "a blank before a colon": lambda text: well(text).replace(b"Content-Length:", b"Content-Length :"),
    "bare line feeds": lambda text: well(text).replace(b"\r\n", b"\n"),
    "connection close": lambda text: framed(echo_of(text), "200 OK", "connection:\tCLOSE"),
    "close in a list": lambda text: framed(echo_of(text), "200 OK", "Connection: keep-alive, Close"),
    "close in a second header": lambda text: framed(
        echo_of(text), "200 OK", "Connection: keep-alive", "Connection: close"
    ),
    "an unknown option": lambda text: framed(echo_of(text), "200 OK", "Connection: closed"),
    "HTTP/1.0": lambda text: well(text).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "HTTP/1.7": lambda text: well(text).replace(b"HTTP/1.1", b"HTTP/1.7"),
    "a status without a reason's blank": lambda text: well(text).replace(b"200 OK", b"200\tOK"),
    "a trailer": lambda text: chunked(echo_of(text), trailer=b"X-Sum: 1\r\n"),
    "an error": lambda text: framed(b'{"error": {"message": "busy"}}', "503 Busy"),
    "a rate limit": lambda text: framed(b"", "429 Slow"),
    "a body that is cut short": lambda text: framed(echo_of(text)[:-9]),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_a_connection_in_doubt_is_not_used_again(name: str) -> None:
    """Each answer is used as well as it can be; what follows on the wire reaches nobody."""
    with WireServer(saying(DOUBTFUL[name], well)) as server:
        client = client_of(server, read_timeout_s=5.0)
        try:
            first = text_of(client, "a")
        except ApiError:
            first = "echo a"
        assert first == "echo a"
        assert text_of(client, "b") == "echo b"
        assert server.accepted == (1 if name == "a trailer" else 2)


def test_an_answer_with_two_different_lengths_is_refused() -> None:
    two = well("a").replace(b"Content-Length", b"Content-Length: 5\r\nContent-Length")
    with WireServer(saying(lambda _: two, well)) as server:
        client = client_of(server)
        with pytest.raises(ApiError):
            ask(client, "a")
        assert text_of(client, "b") == "echo b" and server.accepted == 2


def test_a_body_coded_in_transfer_is_decoded() -> None:
    import gzip  # local: for this test alone

    whole = chunked(gzip.compress(echo_of("a"))).replace(b": chunked", b": gzip, chunked")
    with WireServer(saying(lambda _: whole, well)) as server:
        client = client_of(server)
        assert text_of(client, "a") == "echo a"
        assert text_of(client, "b") == "echo b" and server.accepted == 2


def test_an_error_that_comes_before_the_request_was_read_costs_the_next_call_nothing() -> None:
    """The endpoint refuses on the head alone, and takes the body for the next request."""
    refused = 0

    def before_body(speaker: Speaker) -> bool | None:
        nonlocal refused
        refused += 1
        if refused > 3:
            return None
        speaker.say(framed(b'{"error": {"message": "too large"}}', "413 Too Large"))
        return True

    with WireServer(saying(well), before_body=before_body) as server:
        client = client_of(server, read_timeout_s=5.0)
        for n in range(3):
            with pytest.raises(ApiError) as caught:
                ask(client, f"a{n}" + "x" * 10 ** (n * 3))
            assert caught.value.failure.http_status == 413
        assert text_of(client, "b") == "echo b"


def test_an_early_error_is_kept_although_the_request_could_not_be_sent() -> None:
    def before_body(speaker: Speaker) -> bool | None:
        speaker.say(framed(b'{"error": {"message": "key?"}}', "401 No", "Connection: close"))
        time.sleep(0.2)  # the client is still sending; then the connection is closed, unread
        return False

    with WireServer(saying(well), before_body=before_body) as server:
        with pytest.raises(ApiError) as caught:
            ask(client_of(server), "x" * 30_000_000)
        # Whether the answer outlives the reset is the system's affair: the call must end either way.
        assert caught.value.failure.kind in (FailureKind.UNAUTHORIZED, FailureKind.UNREACHABLE)


def test_what_comes_unasked_on_a_resting_connection_reaches_nobody() -> None:
    said = threading.Event()

    def answer(speaker: Speaker, asked: Asked) -> bool:
        speaker.say(well(asked.text))
        if asked.text == "a":
            time.sleep(0.05)
            speaker.say(framed(b"", "408 Request Timeout", "Connection: close"))
            said.set()
            return False
        return True

    with WireServer(answer) as server:
        client = client_of(server)
        assert text_of(client, "a") == "echo a"
        assert said.wait(5)
        time.sleep(0.05)
        assert text_of(client, "b") == "echo b" and server.accepted == 2


def test_a_call_that_was_cut_takes_its_connection_with_it() -> None:
    is_cut = threading.Event()

    def answer(speaker: Speaker, asked: Asked) -> bool:
        if asked.number == 1 and asked.text == "slow":
            is_cut.wait(30)
        speaker.say(well(asked.text))
        return True

    with WireServer(answer) as server:
        client = client_of(server, deadline_s=1.0)
        with pytest.raises(ApiError) as caught:
            ask(client, "slow")
        assert caught.value.failure.kind is FailureKind.TIMEOUT
        is_cut.set()
        assert text_of(client, "b") == "echo b"


STREAM = b'data: {"choices": [{"index": 0, "delta": {"content": "echo a"}, "finish_reason": null}]}\n\n'


@pytest.mark.parametrize(
    "kind", ["Content-Type: text/event-stream; charset=utf-8", "Content-Type: text/plain"]
)
def test_a_stream_whose_end_has_come_is_not_waited_for_and_its_connection_is_closed(kind: str) -> None:
    """The server leaves the connection open after `[DONE]`, and drips."""
    head = f"HTTP/1.1 200 OK\r\n{kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    over = threading.Event()

    def answer(speaker: Speaker, asked: Asked) -> bool:
        if asked.text != "a":
            speaker.say(well(asked.text))
            return True
        data = STREAM + b"data: [DONE]\n\n"
        speaker.say(head, *(b"%x\r\n%s\r\n" % (1, data[n : n + 1]) for n in range(len(data))))
        while not over.wait(0.02):
            speaker.say(b"c\r\n: keep-alive\r\n")
        return False

    with WireServer(answer) as server:
        client = client_of(server)
        began_s = time.monotonic()
        assert text_of(client, "a") == "echo a"
        assert time.monotonic() - began_s < 5
        assert text_of(client, "b") == "echo b" and server.accepted == 2
        over.set()


def test_a_stream_that_breaks_off_is_a_bad_response() -> None:
    cut = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 500\r\n\r\n" + STREAM

    def answer(speaker: Speaker, asked: Asked) -> bool:
        speaker.say(cut)
        return False

    with WireServer(answer) as server:
        with pytest.raises(ApiError) as caught:
            ask(client_of(server), "a")
        assert caught.value.failure.kind is FailureKind.BAD_RESPONSE


def test_a_connection_s_two_ends_agree_that_an_ordinary_one_is_kept() -> None:
    upgrade = ("Connection: Upgrade, Keep-Alive", "Upgrade: h2,h2c")
    makers = [
        well,
        lambda text: chunked(echo_of(text), [1, 2, 3]),
        lambda text: framed(echo_of(text), "200 OK", *upgrade),
        lambda text: (
            well(text)
            .replace(b"HTTP/1.1", b"HTTP/1.0")
            .replace(b"\r\n", b"\r\nConnection: Keep-Alive\r\n", 1)
        ),
        lambda text: framed(echo_of(text) + b"\n\n"),
        lambda text: framed(echo_of(text), "201 "),
    ]
    with WireServer(saying(*makers)) as server:
        client = client_of(server)
        assert [text_of(client, f"q{n}") for n in range(7)] == [f"echo q{n}" for n in range(7)]
        assert server.accepted == 1


PIECES = st.lists(
    st.sampled_from(
        [
            *INTERIMS[:6],
            STALE,
            STALE[:-7],
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}",
            b"HTTP/1.1 500 X\r\nContent-Length: 2\r\n\r\n{}",
            b"HTTP/1.1 429 X\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 204 X\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"\r\n",
            b"0\r\n\r\n",
            b"data: [DONE]\n\n",
        ]
    )
    | st.binary(max_size=12),
    max_size=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PIECES, st.lists(st.integers(0, 400), max_size=4), st.booleans())
def test_nothing_of_one_exchange_ever_reaches_the_next(
    pieces: list[bytes], cuts: list[int], stays_open: bool
) -> None:
    """Whatever is said, cut anywhere: the first call ends, and the second has its own answer or fails."""
    data = b"".join(pieces)
    places = sorted({min(cut, len(data)) for cut in cuts})

    def answer(speaker: Speaker, asked: Asked) -> bool:
        if asked.text != "first":
            speaker.say(well(asked.text))
            return True
        parts = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
        speaker.say(*(part for part in parts if part), pause_s=0.001)
        return stays_open

    with WireServer(answer) as server:
        client = client_of(server, deadline_s=0.25)
        with contextlib.suppress(ApiError):
            ask(client, "first")
        for n in range(3):
            with contextlib.suppress(
                ApiError
            ):  # the endpoint may close a connection in the moment it is used again
                assert text_of(client, f"next {n}") == f"echo next {n}"
        assert text_of(client, "last") == "echo last"
        client.close()
