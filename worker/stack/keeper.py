"""The process that runs one home's stack. The first command starts it; it ends with the last.

It holds an exclusive lock on `<home>/stack.lock` for its whole life, and listens on a control socket. A command is
attached for as long as its connection is open: a command that is killed is detached like one that sends `bye`.
A request and its answer are a JSON object a line:

    {"op": "hello"}                          {"ok": true, "protocol": 1, "pid": 123}
    {"op": "ensure", "service": "broker"}    {"ok": true, "same": true, "broker_url": "redis+socket:///…"}
    {"op": "ensure", "service": "simulator", "argv": […], "env": {…}, "base_env": {…}, "cwd": "/…"}
                                             {"ok": true, "same": true, "url": "http://…"}
    {"op": "ensure", "service": "worker", …, "grace_s": 30.0}
                                             {"ok": true, "same": true, "service": "worker"}
    {"op": "status"}                         {"ok": true, "pid": 123, "client_count": 1, "services": {…}}
    {"op": "hurry"}                          {"ok": true}
    {"op": "bye"}                            {"ok": true, "last": true}, end of file once all is stopped
                                             {"ok": true, "last": false, "stops": true}, end of file once the
                                             worker is stopped that no other command uses
    (unasked)                                {"event": "service_died", "service": "worker", "status": -9,
                                              "reason": "signal 9, SIGKILL", "is_restarted": true}

A command has one worker. It shares it with all commands that asked for the same settings. The first is `worker`; those
for other settings are `worker-2` and so on, each with its own log. A worker stops with the last command that uses it.
Names must not show the settings, which hold the key.
A request that fails is answered with "error" and a sentence; "stopping" is an error, too.
Environments hold the API key: they are sent on this socket, never as arguments, and are never logged.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

from worker.errors import AntreanError, Unreachable
from worker.files.home import (
    broker_socket,
    broker_url,
    control_socket,
    open_lock_file,
    prepare_home,
    runtime_folder,
    try_lock,
)
from worker.files.names import as_file_name
from worker.logs.sink import take_over, tell_crashes
from worker.stack import valkey
from worker.stack.child import Child
from worker.stack.kept import End, KeptProcess, Launch
from worker.stack.services import Service, Workplace, fingerprint_of, launch_plainly, log_starts
from worker.stack.simulator import SimulatorProcess

PROTOCOL = 1
LINE_MAX_BYTES = 8 * 1024 * 1024

_WORKER = "worker"
_STOP_ORDER = ("simulator", "broker")  # after the workers
_STOP_LIMIT_S = {"broker": 20.0, "simulator": 5.0}
_WORKER_MARGIN_S = 5.0
_ORPHAN_LIMIT_S = 20.0
_ORPHAN_POLL_S = 0.05

log = logging.getLogger("antrean.keeper")


class Keeper:
    """The services of one home and the commands that use them."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._services: dict[str, Service] = {}
        self._simulator: SimulatorProcess | None = None
        self._starting: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._workers: dict[str, Workplace] = {}
        self._clients: set[asyncio.StreamWriter] = set()
        self._requests: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio holds weak references only
        self._broker_lock: int | None = None
        self._stop_requested = asyncio.Event()
        self._hurried: set[asyncio.StreamWriter] = set()  # commands that leave their worker no grace

    async def run(self, first_client: socket.socket, stack_lock: int) -> None:
        """Serves until the last client has detached, then stops everything in order and releases `stack_lock`."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        loop.add_signal_handler(signal.SIGTERM, self._stop_requested.set)
        address = control_socket(self._home)
        address.unlink(missing_ok=True)  # left by a keeper that was killed
        # A plain function, not a coroutine: asyncio would log a traceback for each coroutine cancelled at the end.
        server = await asyncio.start_unix_server(self._begin_to_serve, address, limit=LINE_MAX_BYTES)
        self._begin_to_serve(*await asyncio.open_unix_connection(sock=first_client, limit=LINE_MAX_BYTES))
        log.info("keeper.started home=%s pid=%d", self._home, os.getpid())

        await self._stop_requested.wait()
        for request in self._requests:
            request.cancel()
        await asyncio.gather(*(self._stop_worker(name) for name in list(self._workers)))
        for name in _STOP_ORDER:
            if name in self._services:
                await self._stop_service(name)
        server.close()
        self._remove_sockets()
        log.info("keeper.stopped home=%s", self._home)
        # From here on a new keeper may start. Clients that wait see the end of file when this process ends.
        os.close(stack_lock)

    def _begin_to_serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._begin(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            while line := await reader.readline():
                # A task, so that the end of file of a killed client is seen while its request is being handled.
                request = asyncio.create_task(self._answer(json.loads(line), writer))
                self._requests.add(request)
                request.add_done_callback(self._requests.discard)
        except (OSError, ValueError) as exc:  # a connection reset, or another protocol
            log.warning("client.failed error=%s", type(exc).__name__)
        self._leave(writer)
        if not self._stop_requested.is_set():
            writer.close()

    def _leave(self, writer: asyncio.StreamWriter) -> bool:
        """Detaches a client. True if a worker that only it used is being stopped; the connection closes after that."""
        self._clients.discard(writer)
        left = [name for name, place in self._workers.items() if place.remove_user(writer)]
        if not self._clients:
            self._stop_requested.set()
            return False
        if left:
            self._begin(self._stop_left(left, writer))
        return bool(left)

    async def _stop_left(self, names: list[str], writer: asyncio.StreamWriter) -> None:
        for name in names:
            await self._stop_unused(name)
        if not self._stop_requested.is_set():
            writer.close()

    async def _stop_worker(self, name: str) -> None:
        if name in self._services:
            await self._stop_service(name, is_hurried=self._workers[name].last_user in self._hurried)

    async def _stop_service(self, name: str, *, is_hurried: bool = False) -> None:
        process = self._services[name].process
        await process.stop(is_hurried=is_hurried)
        if process.child is not None:
            log.info("service.stopped service=%s status=%s", name, process.child.status)

    async def _stop_unused(self, name: str) -> None:
        async with self._starting[name]:
            place = self._workers.get(name)
            if place is None or place.users:
                return  # another command has asked for the same worker meanwhile
            await self._stop_worker(name)
            if not place.users:
                del self._workers[name]
            self._services.pop(name, None)  # a command that asks from now on starts another

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        try:
            answer = {"ok": True, **await self._handle(message, writer)}
        except AntreanError as exc:
            answer = {"error": "failed", "sentence": str(exc), "is_unreachable": isinstance(exc, Unreachable)}
        except OSError as exc:
            answer = {
                "error": "failed",
                "sentence": f"the embedded stack failed: {exc}",
                "is_unreachable": True,
            }
        _send(writer, answer)

    async def _handle(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> dict[str, Any]:
        operation = message.get("op")
        if operation == "hurry":
            self._hurry(writer)
            return {}
        if self._stop_requested.is_set():
            # The connection stays open: its end of file tells the client that this home is free.
            return {"ok": False, "error": "stopping"}
        if operation == "hello":
            return {"protocol": PROTOCOL, "pid": os.getpid()}
        if operation == "ensure":
            if message["service"] == _WORKER:
                return await self._ensure_worker(message, writer)
            return await self._ensure(message)
        if operation == "status":
            return self._status()
        if operation == "bye":
            stops = self._leave(writer)
            return {"last": self._stop_requested.is_set(), "stops": stops}
        return {"ok": False, "error": "unknown"}

    async def _ensure(self, message: dict[str, Any]) -> dict[str, Any]:
        name = message["service"]
        asked = fingerprint_of(message)
        service = await self._started(name, asked, message)
        answer: dict[str, Any] = {"same": service.fingerprint == asked}
        if name == "broker":
            answer["broker_url"] = broker_url(self._home)
        elif name == "simulator" and self._simulator is not None:
            answer["url"] = self._simulator.url
        return answer

    async def _ensure_worker(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> dict[str, Any]:
        """The worker with these settings: the one that runs, or a new one beside those with other settings."""
        asked = fingerprint_of(message)
        for name, place in list(self._workers.items()):
            # A command uses one worker: one that asks for another gives up its former one.
            if place.fingerprint != asked and place.remove_user(writer):
                await self._stop_unused(name)
        same = [name for name, place in self._workers.items() if place.fingerprint == asked]
        names = chain([_WORKER], (f"{_WORKER}-{number}" for number in count(2)))
        name = same[0] if same else next(name for name in names if name not in self._workers)
        self._workers.setdefault(name, Workplace(asked))
        self._workers[name].users.add(writer)
        await self._started(name, asked, message)
        return {"same": len(self._workers) == 1, "service": name}

    async def _started(self, name: str, fingerprint: str, message: dict[str, Any]) -> Service:
        async with self._starting[name]:
            service = self._services.get(name)
            if service is None or not service.process.is_alive:
                if service is not None:  # it died, and may be waiting for its next start: start it now
                    await self._stop_service(name)
                process = self._make_process(name, message)
                service = self._services[name] = Service(process, fingerprint)
                await process.start()
            return service

    def _make_process(self, name: str, message: dict[str, Any]) -> KeptProcess:
        launch: Launch
        if name == "broker":
            launch, stop_limit_s = self._launch_broker, _STOP_LIMIT_S[name]
        else:
            argv: list[str] = [as_file_name(one) for one in message["argv"]]
            told = {**message["base_env"], **message["env"]}
            env: dict[str, str] = {as_file_name(one): as_file_name(value) for one, value in told.items()}
            cwd, output = Path(as_file_name(message["cwd"])), self._home / "logs" / f"{name}.log"
            if name == "simulator":
                self._simulator = SimulatorProcess(argv, env, cwd, output)
                launch, stop_limit_s = self._simulator.launch, _STOP_LIMIT_S[name]
            else:
                launch, stop_limit_s = (
                    launch_plainly(argv, env, cwd, output),
                    message["grace_s"] + _WORKER_MARGIN_S,
                )
        # A simulator that is started again would listen on another port: its end is only announced.
        is_restarted = name != "simulator"
        return KeptProcess(
            name,
            log_starts(name, launch),
            partial(self._announce, name),
            is_restarted=is_restarted,
            stop_limit_s=stop_limit_s,
        )

    async def _launch_broker(self, adopt: Callable[[Child], Child]) -> None:
        if self._broker_lock is None:
            self._broker_lock = await self._take_broker_lock()
        await valkey.launch(self._home, self._broker_lock, adopt)

    async def _take_broker_lock(self) -> int:
        """The lock that each Valkey of this home inherits. Two of them at once would write one append-only file."""
        lock = open_lock_file(self._home / "broker.lock")
        deadline = time.monotonic() + _ORPHAN_LIMIT_S
        while not try_lock(lock):
            # A Valkey whose keeper was killed has the lock. It is asked to end. It is no child of ours: hence a poll.
            await valkey.shut_down_orphan(self._home)
            if time.monotonic() > deadline:
                os.close(lock)
                raise Unreachable(
                    f"another Valkey still runs in {self._home}: end it, or choose another ANTREAN_HOME"
                )
            await asyncio.sleep(_ORPHAN_POLL_S)
        return lock

    def _status(self) -> dict[str, Any]:
        services = {
            name: {
                "pid": process.child.pid if process.is_alive and process.child else None,
                "restart_count": process.restart_count,
            }
            for name, process in ((name, one.process) for name, one in self._services.items())
        }
        return {"pid": os.getpid(), "client_count": len(self._clients), "services": services}

    def _hurry(self, writer: asyncio.StreamWriter) -> None:
        """Starts a cold shutdown of this command's worker, unless another command uses it."""
        self._hurried.add(writer)
        for name, place in self._workers.items():
            # No user is left, and this command was the last one: the worker is being stopped.
            if not place.users and place.last_user is writer and name in self._services:
                self._services[name].process.hurry()

    def _announce(self, name: str, end: End) -> None:
        if end.status is None:
            log.error("service.restart_failed service=%s error=%s", name, end.reason)
        else:
            log.warning("service.died service=%s status=%s", name, end.status)
        place = self._workers.get(name)
        for writer in self._clients if place is None else place.users:
            _send(
                writer,
                {
                    "event": "service_died",
                    "service": name,
                    "status": end.status,
                    "reason": end.reason,
                    "is_restarted": end.restarts_in_s is not None,
                },
            )

    def _reap(self) -> None:
        for service in self._services.values():
            service.process.reap()

    def _remove_sockets(self) -> None:
        for address in (broker_socket(self._home), control_socket(self._home)):
            address.unlink(missing_ok=True)
        folder = runtime_folder(self._home)
        if folder.parent != self._home:
            try:
                folder.rmdir()
            except OSError as exc:
                log.warning("keeper.folder_left folder=%s error=%s", folder, exc.strerror)


def _send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    if not writer.is_closing():
        writer.write(json.dumps(message).encode() + b"\n")


def main() -> None:
    """Arguments: the home folder, the descriptors of its locked `stack.lock` and of the first client."""
    home, stack_lock, first_client = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    # The command waits for the process that it started, which ends here. The keeper is a child of init, so that no
    # zombie stays.
    if os.fork() != 0:
        os._exit(0)
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for descriptor in (stack_lock, first_client):
        os.set_inheritable(descriptor, False)
    take_over(logging.INFO, as_json=False)
    tell_crashes()
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    try:
        prepare_home(home, has_broker=False)
        asyncio.run(Keeper(home).run(socket.socket(fileno=first_client), stack_lock))
    except (OSError, AntreanError) as exc:
        raise SystemExit(f"the keeper of {home} cannot run: {exc}") from None


if __name__ == "__main__":
    main()
