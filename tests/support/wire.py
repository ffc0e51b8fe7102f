"""An endpoint that speaks at the socket: any bytes, cut anywhere, and it knows what it was asked."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

INTERIM = (b"HTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n")


def echo_of(text: str) -> bytes:
    """The completion that belongs to this prompt."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": f"echo {text}"},
        "finish_reason": "stop",
    }
    return json.dumps({"object": "chat.completion", "model": "m1", "choices": [choice]}).encode()


def framed(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """An ordinary answer."""
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunked(body: bytes, sizes: Iterable[int] = (), trailer: bytes = b"") -> bytes:
    """An answer in chunks of these sizes, the rest in one."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces, at = [], 0
    for size in (*sizes, len(body)):
        if piece := body[at : at + size]:
            pieces.append(b"%x\r\n%s\r\n" % (len(piece), piece))
        at += size
    return head + b"".join(pieces) + b"0\r\n" + trailer + b"\r\n"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as the endpoint read it."""

    path: str
    text: str  # of the last message
    number: int  # how often this text was asked, from 1
    job: str  # as its header names it


Answer = Callable[["Speaker", Asked], bool]


class Speaker:
    """One connection from the endpoint's side. `say` sends pieces, each in a packet of its own if it can."""

    def __init__(self, connection: socket.socket, rng: random.Random) -> None:
        self.connection = connection
        self.rng = rng
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def say(self, *pieces: bytes, pause_s: float = 0.0) -> None:
        for piece in pieces:
            self.connection.sendall(piece)
            if pause_s:
                time.sleep(pause_s)

    def say_cut(self, data: bytes, cuts: int) -> None:
        """Sends `data` cut at random places, a moment between them."""
        places = sorted(self.rng.randrange(len(data) + 1) for _ in range(cuts))
        self.say(*(data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)), pause_s=0.001)

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.connection.close()


class WireServer:
    """Answers `POST …/chat/completions` as `answer` says, which returns whether the connection stays open.

    `before_body` may answer on the head alone: False closes the connection, True reads on as if there were no body,
    None reads the body. `heads` counts the requests by their job, `calls` those whose body was read by their text,
    `paid` the whole answers by their text where `answer` counts them.
    """

    def __init__(
        self, answer: Answer, *, seed: int = 0, before_body: Callable[[Speaker], bool | None] | None = None
    ) -> None:
        self._answer = answer
        self._before_body = before_body
        self._seed = seed
        self._lock = threading.Lock()
        self.heads: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()
        self.accepted = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return self.base_url

    def __enter__(self) -> WireServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Takes no further connection."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            speaker = Speaker(connection, random.Random(self._seed * 1_000_003 + self.accepted))
            threading.Thread(target=self._serve, args=(speaker,), daemon=True).start()

    def _serve(self, speaker: Speaker) -> None:
        with speaker.connection as connection, connection.makefile("rb") as stream:
            try:
                while line := stream.readline():
                    length, job = 0, ""
                    while (header := stream.readline().strip()) != b"":
                        name, _, value = header.partition(b":")
                        if name.lower() == b"content-length":
                            length = int(value)
                        if name.lower() == b"x-antrean-job":
                            job = value.strip().decode()
                    path = line.split()[1].decode()
                    if path.endswith("/models"):
                        speaker.say(framed(b'{"data": [{"id": "m1"}]}'))
                        continue
                    if not line.startswith(b"POST "):  # a body that nobody read, taken for a request
                        speaker.say(framed(b'{"error": {"message": "bad request line"}}', "400 Bad Request"))
                        continue
                    self._count(self.heads, job)
                    is_open = None if self._before_body is None else self._before_body(speaker)
                    if is_open is False:
                        return
                    if is_open is True:  # answered without a look at the body, which is read as a request now
                        continue
                    if not self._answer(speaker, self._note(path, job, stream.read(length))):
                        return
            except (OSError, ValueError, IndexError, LookupError):
                return

    def _note(self, path: str, job: str, body: bytes) -> Asked:
        text = json.loads(body)["messages"][-1]["content"]
        return Asked(path, text, self._count(self.calls, text), job)

    def count_paid(self, asked: Asked) -> None:
        """A whole answer is about to leave, which the client must use."""
        self._count(self.paid, asked.text)

    def _count(self, counter: Counter[str], name: str) -> int:
        with self._lock:
            counter[name] += 1
            return counter[name]
