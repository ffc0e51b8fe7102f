"""An endpoint at its worst: every odd way of an answer that is known, mixed at random, seeded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from tests.support.wire import INTERIM, Asked, Speaker, WireServer, chunked, echo_of, framed

Way = Callable[[WireServer, Speaker, Asked], bool]


def _plain(server: WireServer, speaker: Speaker, asked: Asked) -> bool:
    server.count_paid(asked)
    speaker.say(framed(echo_of(asked.text)))
    return True


def _interim(server: WireServer, speaker: Speaker, asked: Asked) -> bool:
    """Interim answers, in the packet of the answer or long before it, cut anywhere."""
    rng = speaker.rng
    heads = b"".join(rng.choice(INTERIM) for _ in range(rng.randrange(1, 5)))
    server.count_paid(asked)
    match rng.randrange(3):
        case 0:
            speaker.say(heads + framed(echo_of(asked.text)))
        case 1:
            speaker.say(heads, pause_s=0.03)
            speaker.say(framed(echo_of(asked.text)))
        case _:
            speaker.say_cut(heads + framed(echo_of(asked.text)), 4)
    return True


def _oddly_framed(server: WireServer, speaker: Speaker, asked: Asked) -> bool:
    body = echo_of(asked.text)
    ways = [
        chunked(body, [1, 7, 30]),
        chunked(body, trailer=b"X-Sum: 1\r\n"),
        chunked(body).replace(b"Transfer-Encoding", b"Content-Length: 3\r\nTransfer-Encoding"),
        framed(body, "200 OK", f"Content-Length: {len(body)}"),
        framed(body, "200 OK", "X-Folded: a", "\tb"),
        framed(body).replace(b"\r\n", b"\n"),
        framed(body).replace(b"HTTP/1.1", b"HTTP/1.0"),
        framed(body, "200 OK", "Connection: Close"),
    ]
    server.count_paid(asked)
    speaker.say_cut(speaker.rng.choice(ways), speaker.rng.randrange(4))
    return True


def _too_much(server: WireServer, speaker: Speaker, asked: Asked) -> bool:
    """The answer, and another one behind it that nobody asked for."""
    server.count_paid(asked)
    stale = framed(echo_of("of another"))
    speaker.say(framed(echo_of(asked.text)) + stale[: speaker.rng.choice([1, 20, len(stale)])])
    return True


def _goes_idle(server: WireServer, speaker: Speaker, asked: Asked) -> bool:
    """Answers, and closes the connection a moment later, with or without a word."""
    server.count_paid(asked)
    speaker.say(framed(echo_of(asked.text)), pause_s=speaker.rng.choice([0.0, 0.001, 0.02]))
    if speaker.rng.random() < 0.5:
        speaker.say(framed(b"", "408 Request Timeout", "Connection: close"))
    return False


def _streamed(server: WireServer, speaker: Speaker, asked: Asked) -> bool:
    text = f"echo {asked.text}"
    choices = [
        {"index": 0, "delta": {"content": piece}, "finish_reason": None} for piece in (text[:7], text[7:])
    ]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    events = [b"data: %s\n\n" % json.dumps({"choices": [choice]}).encode() for choice in choices]
    server.count_paid(asked)
    whole = chunked(b"".join([*events, b"data: [DONE]\n\n"])).replace(
        b"application/json", b"text/event-stream"
    )
    speaker.say_cut(whole, 3)
    return True


def _refuses(server: WireServer, speaker: Speaker, asked: Asked) -> bool:
    if speaker.rng.random() < 0.5:
        speaker.say(framed(b'{"error": {"message": "busy"}}', "503 Busy"))
    else:
        speaker.say(framed(b'{"error": {"code": 500, "message": "lost"}, "choices": []}'))
    return True


def _breaks_off(server: WireServer, speaker: Speaker, asked: Asked) -> bool:
    whole = speaker.rng.choice(INTERIM) + framed(echo_of(asked.text))
    speaker.say(whole[: speaker.rng.randrange(len(whole) - 5)])
    if speaker.rng.random() < 0.5:
        speaker.reset()
    return False


_WAYS: tuple[tuple[Way, int], ...] = (
    (_plain, 30),
    (_interim, 20),
    (_oddly_framed, 14),
    (_too_much, 10),
    (_goes_idle, 8),
    (_streamed, 6),
    (_refuses, 4),
    (_breaks_off, 4),
)


def mixed_server(seed: int) -> WireServer:
    """A server that echoes each prompt in a way that is drawn anew for each request. A twentieth of the requests
    are refused on their head alone; half of these read what is left as the next request."""

    def answer(speaker: Speaker, asked: Asked) -> bool:
        ways, weights = zip(*_WAYS, strict=True)
        way: Way = speaker.rng.choices(ways, weights)[0]
        time.sleep(speaker.rng.choice([0.0, 0.0, 0.01]))
        return way(server, speaker, asked)

    def before_body(speaker: Speaker) -> bool | None:
        if speaker.rng.random() >= 0.05:
            return None
        speaker.say(framed(b'{"error": {"message": "too many at once"}}', "503 Busy"))
        return speaker.rng.random() < 0.5

    server = WireServer(answer, seed=seed, before_body=before_body)
    return server
