"""Name look-ups that hang, and the register of calls."""

from __future__ import annotations

import socket
import threading

import pytest

from api_client.deadline import Call, CallCut, CallRegister, Cut
from api_client.resolver import Address, Resolver

FOUND: list[Address] = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))]


class Lookup:
    """A name server that answers when it is told to."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.may_answer = threading.Event()
        self.asked = 0

    def __call__(self, host: str, port: int) -> list[Address]:
        self.asked += 1
        self.begun.release()
        self.may_answer.wait(10)
        return FOUND


def new_register(deadline_s: float = 60.0) -> CallRegister:
    now_s = 0.0
    return CallRegister(deadline_s, lambda: now_s)


def test_a_look_up_that_hangs_ends_with_the_connect_timeout() -> None:
    lookup = Lookup()
    with pytest.raises(TimeoutError):
        Resolver(lookup).resolve("slow.example", 80, timeout_s=0.01, call=new_register().begin())
    lookup.may_answer.set()


def test_cutting_a_call_ends_its_look_up_and_waiters_share_one() -> None:
    lookup, register = Lookup(), new_register()
    resolver = Resolver(lookup)
    ended: list[type[BaseException]] = []

    def resolve(call: Call) -> None:
        with pytest.raises(CallCut) as caught:
            resolver.resolve("slow.example", 80, timeout_s=10, call=call)
        ended.append(caught.type)

    threads = [threading.Thread(target=resolve, args=(register.begin(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert lookup.begun.acquire(timeout=5)
    assert register.cut_all() == 3
    for thread in threads:
        thread.join(5)
    lookup.may_answer.set()
    assert ended == [CallCut] * 3 and lookup.asked == 1


def test_a_thread_that_cannot_start_ends_one_look_up_and_no_later_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolver, register = Resolver(lambda host, port: FOUND), new_register()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as shortage:
        shortage.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            register.begin()  # the watchdog's thread; the register is none the worse for it
    call = register.begin()
    with monkeypatch.context() as shortage:
        shortage.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            resolver.resolve("endpoint.test", 80, timeout_s=1, call=call)
    assert [resolver.resolve("endpoint.test", 80, timeout_s=1, call=call) for _ in range(2)] == [FOUND] * 2
    assert len(register) == 1


def test_a_look_up_that_fails_in_a_way_nobody_thought_of_reaches_its_waiters_and_is_made_anew() -> None:
    answers: list[list[Address] | Exception] = [MemoryError(), FOUND]

    def look_up(host: str, port: int) -> list[Address]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    resolver, call = Resolver(look_up), new_register().begin()
    with pytest.raises(MemoryError):
        resolver.resolve("endpoint.test", 80, timeout_s=5, call=call)
    assert resolver.resolve("endpoint.test", 80, timeout_s=5, call=call) == FOUND


def test_an_address_is_not_looked_up_elsewhere() -> None:
    lookup = Lookup()
    lookup.may_answer.set()
    before = threading.active_count()
    register = new_register()
    assert Resolver(lookup).resolve("127.0.0.1", 80, timeout_s=1, call=register.begin()) == FOUND
    assert threading.active_count() <= before + 1  # the watchdog


def test_a_register_that_is_shut_begins_no_call() -> None:
    register = new_register()
    call = register.begin()
    register.shut()
    with pytest.raises(CallCut):
        register.begin()
    assert call.cut is None and len(register) == 1
    register.end(call)
    assert len(register) == 0


def test_a_watchdog_that_finds_only_cut_calls_lets_them_end() -> None:
    for _ in range(200):  # the watchdog may see the call before the cut or after it
        register = new_register()
        call = register.begin()
        register.cut_all()
        assert register.end(call) == 0.0 and len(register) == 0


def test_a_late_cut_leaves_the_socket_of_a_detached_call_alone() -> None:
    register = new_register()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        call = register.begin()
        call.attach(ours)
        call.detach()
        assert register.cut_all() == 1 and call.cut is Cut.SHUTDOWN
        ours.sendall(b"still open")
        assert theirs.recv(16) == b"still open"
        with pytest.raises(CallCut):
            call.attach(ours)


def test_the_watchdog_cuts_the_call_that_is_due_and_no_other() -> None:
    now_s = [0.0]
    register = CallRegister(5.0, lambda: now_s[0])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        late = register.begin()
        late.attach(ours)
        now_s[0] = 5.0
        early = register.begin()
        register.shut()  # wakes the watchdog
        theirs.settimeout(5)
        assert theirs.recv(1) == b""
    assert late.cut is Cut.DEADLINE and early.cut is None
    register.cut_all()
