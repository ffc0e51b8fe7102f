"""How commands and workers begin: they say where requests go, name what is misspelt, and end where they cannot work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

import pytest

from tests.acceptance.test_run import result_lines, write_documents
from tests.support.processes import Finished, Shop, SimulatorProcess, environment, processes_under
from tests.support.tls import TlsFront, make_certificate

pytestmark = pytest.mark.real_interpreter

SETTINGS, UNREACHABLE = 3, 4
LINE = '{"model":"DeepSeek-V3.1","messages":[{"role":"user","content":"Hi."}]}\n'


def started_with(
    shop: Shop, arguments: list[str], variables: Mapping[str, str], **settings: object
) -> Finished:
    """How a command or Celery itself ended with these variables beside the shop's settings."""
    env = {**environment({**shop.settings, **settings}), **variables}
    done = subprocess.run(
        [sys.executable, "-P", "-m", *arguments],
        cwd=shop.folder,
        env=env,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())


WORKERS = [["worker.cli", "worker"], ["celery", "-A", "worker", "worker"]]


@pytest.mark.default_cases(3)
@pytest.mark.parametrize("command", WORKERS, ids=" ".join)
@pytest.mark.parametrize(
    ("variables", "settings", "code", "words"),
    [
        ({"REQUESTS_CA_BUNDLE": "/nowhere/ca.pem"}, {}, SETTINGS, "REQUESTS_CA_BUNDLE"),
        ({}, {"broker_url": "redis://:secret@127.0.0.1:1/0"}, UNREACHABLE, "ANTREAN_BROKER_URL"),
        ({"ALL_PROXY": "socks5://:secret@127.0.0.1:1"}, {}, SETTINGS, "ALL_PROXY"),
        ({}, {"base_url": "http://127.0.0.1:99999"}, SETTINGS, "ANTREAN_BASE_URL"),
        ({}, {"broker_url": "redis://:secret@127.0.0.1:1/0?foo=bar"}, SETTINGS, "ANTREAN_BROKER_URL"),
        ({}, {"database_url": "sqlite:///letters.txt"}, UNREACHABLE, "no SQLite database"),
        ({}, {"home": "/proc/nowhere"}, SETTINGS, "ANTREAN_HOME"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_worker_that_cannot_start_ends_with_a_sentence_and_its_exit_code(
    shop: Shop,
    command: list[str],
    variables: dict[str, str],
    settings: dict[str, object],
    code: int,
    words: str,
) -> None:
    (shop.folder / "letters.txt").write_text("This is no database. " * 100)
    ended = started_with(shop, command, {"NO_PROXY": "", **variables}, **settings)
    assert ended.code == code, ended.err
    assert words in ended.err
    for unwanted in ("Traceback", "ready.", "secret"):
        assert unwanted not in ended.err + ended.out
    assert processes_under(shop.folder) == []


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("command", WORKERS, ids=" ".join)
def test_a_worker_whose_start_meets_a_defect_ends_too(shop: Shop, command: list[str]) -> None:
    """Whatever it is that goes wrong: a receiver of Celery's signals that raises leaves a worker that does nothing."""
    (shop.folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'worker.upkeep.heartbeat':\n"
        "            import worker.clock\n"
        "            worker.clock.SystemClock.monotonic_s = lambda self: {}['a secret']\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    path = f"{shop.folder}{os.pathsep}{environment({})['PYTHONPATH']}"
    ended = started_with(shop, command, {"PYTHONPATH": path})
    assert ended.code == 70, ended.err
    assert "this process cannot start: KeyError, at sitecustomize.py:6" in ended.err
    assert "secret" not in ended.err


def bound_by_permissions() -> list[str]:
    """What to put before a command so that file modes bind it, also where the tests run as root."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("permissions do not bind root, and there is no setpriv")
    without = "-dac_override,-dac_read_search"
    return ["setpriv", "--bounding-set", without, "--inh-caps", without]


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("mode", [0o555, 0o000], ids=oct)
def test_a_home_that_may_not_be_written_is_a_sentence(shop: Shop, mode: int) -> None:
    home = shop.folder / ".antrean"
    (shop.folder / "r.jsonl").write_text(LINE)
    write_documents(shop.folder, 1)
    before = bound_by_permissions()
    home.mkdir()
    home.chmod(mode)
    commands = (
        ["status"],
        ["submit", "r.jsonl", "--no-check", "--model", "m"],
        ["worker"],
        ["up", "--no-flower"],
    )
    try:
        for command in (*commands, ["run", "documents", "-p", "prompt.md"], ["flower"]):
            ended = subprocess.run(
                [*before, sys.executable, "-P", "-m", "worker.cli", *command],
                cwd=shop.folder,
                env=environment(shop.settings),
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=60,
                check=False,
            )
            said = ended.stderr.decode()
            assert ended.returncode in (SETTINGS, UNREACHABLE), (command, said)
            assert str(home) in said and "Traceback" not in said, (command, said)
    finally:
        home.chmod(0o700)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_commands_begin_with_the_address_that_requests_go_to(
    shop: Shop, simulator: SimulatorProcess, json_too: list[str]
) -> None:
    write_documents(shop.folder, 1)
    (shop.folder / "r.jsonl").write_text(LINE)
    line = f"requests go to {simulator.url}/v1/chat/completions\n"
    for command in (["check"], ["submit", "r.jsonl"], ["run", "documents", "-p", "prompt.md"]):
        done = shop.antrean(*command, *json_too)
        assert done.code == 0, done.err
        assert done.err.startswith(line)
        assert not json_too or json.loads(done.out)
    done = shop.antrean("run", "documents", "-p", "prompt.md", "--simulate", "--latency", "0")
    assert done.err.startswith("requests go to http://127.0.0.1:")
    assert line not in done.err, "a simulation has an address of its own"


@pytest.mark.full
def test_the_default_address_is_called_one(shop: Shop) -> None:
    del shop.settings["base_url"]
    (shop.folder / "r.jsonl").write_text(LINE)
    # Nothing leaves this machine: the proxy that all calls would go through refuses.
    for command in (["check"], ["submit", "r.jsonl"]):
        ended = started_with(shop, ["worker.cli", *command], {"https_proxy": "http://127.0.0.1:1"})
        assert ended.code == UNREACHABLE
        assert ended.err.splitlines()[0].endswith(", the default: ANTREAN_BASE_URL is not set")


@pytest.mark.full
def test_jobs_that_were_left_at_another_address_are_named(shop: Shop, simulator: SimulatorProcess) -> None:
    (shop.folder / "r.jsonl").write_text(LINE * 3)
    assert shop.antrean("submit", "r.jsonl").code == 0
    assert "no worker calls" not in shop.antrean("check").err
    elsewhere = SimulatorProcess("--latency", "0")
    try:
        warning = f"warning: 3 jobs in this ledger wait for {simulator.url}, which no worker calls"
        assert warning in shop.antrean("check", base_url=elsewhere.url).err
        assert warning in shop.antrean("submit", "r.jsonl", base_url=elsewhere.url).err
        write_documents(shop.folder, 1)
        assert warning in shop.antrean("run", "documents", "-p", "prompt.md", base_url=elsewhere.url).err
    finally:
        elsewhere.close()


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    "command", [["status"], ["check", "--json"], ["usage", "--json"], ["simulate", "--rpm", "x"]]
)
def test_a_misspelt_setting_is_named_by_every_command(shop: Shop, command: list[str]) -> None:
    done = shop.antrean(*command, concurency=3)
    assert "antrean: warning: ANTREAN_CONCURENCY is no setting: is ANTREAN_CONCURRENCY meant?" in done.err


@pytest.mark.full
def test_celerys_own_commands_name_a_misspelt_setting_once(shop: Shop) -> None:
    for command in (*WORKERS, ["celery", "-A", "worker", "flower"]):
        ended = started_with(
            shop, command, {}, concurency=3, broker_url="redis://127.0.0.1:1/0", home="/proc/x"
        )
        assert ended.code, ended.err
        assert ended.err.count("ANTREAN_CONCURENCY is no setting") == 1, (command, ended.err)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
@pytest.mark.simulator("--latency", "0")
def test_a_relative_bundle_of_certificates_serves_a_runs_worker_too(
    shop: Shop, simulator: SimulatorProcess
) -> None:
    write_documents(shop.folder, 2)
    certificate = make_certificate(shop.folder / "both.pem")
    front = TlsFront(certificate, int(simulator.url.rpartition(":")[2]))
    arguments = ["worker.cli", "run", "documents", "-p", "prompt.md"]
    address = f"https://127.0.0.1:{front.port}"
    try:
        done = started_with(shop, arguments, {"REQUESTS_CA_BUNDLE": "both.pem"}, base_url=address)
        assert done.code == 0, done.err
        refused = started_with(shop, arguments, {"REQUESTS_CA_BUNDLE": "nowhere.pem"}, base_url=address)
        assert refused.code == SETTINGS
    finally:
        front.close()
    assert len(result_lines(shop.folder / "results.jsonl")) == 2
