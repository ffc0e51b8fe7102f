"""A mistake of a user's never ends with 70, "this should not have happened": each is a sentence and a code of its own.

Every command runs in this process, with settings, proxies and files that nothing can be done with.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker.cli.endings import code_of
from worker.cli.main import app
from worker.errors import ExitCode

LINE = '{"model":"m","messages":[{"role":"user","content":"Hi."}]}\n'
SOUND = {
    "ANTREAN_BASE_URL": "http://127.0.0.1:1",
    "ANTREAN_BROKER_URL": "redis://127.0.0.1:1/0",
    "ANTREAN_API_KEY": "k",
    "ANTREAN_MODEL": "m",
}
SETTINGS_AND_ENDPOINT = [["check", "--json"], ["submit", "requests.jsonl"]]
LEDGER = [["status"], ["usage", "--json"], ["submit", "requests.jsonl", "--no-check"], ["check"]]
CODES = {ExitCode.USAGE, ExitCode.SETTINGS, ExitCode.UNREACHABLE}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.upper().startswith("ANTREAN_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, value in SOUND.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requests.jsonl").write_text(LINE)
    return tmp_path


def _with_our_modules() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def assert_is_a_sentence(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = code_of(lambda: app(command, prog_name="antrean"))
    said = capsys.readouterr()
    assert code in CODES, f"{command} ends with {code}: {said.err}"
    assert "should not have happened" not in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    "value",
    [
        "http://h:99999/v1",
        "http://h:port",
        "http://[::1",
        "http://127.0.0.1:1/v1#x",
        "http://127.0.0.1:1/v1?api-version=1",
        "http://127.0.0.1:1/v1\udcff",
        "http://u:p@h",
        "nowhere",
        "",
    ],
    ids=ascii,
)
@pytest.mark.parametrize("command", SETTINGS_AND_ENDPOINT, ids=" ".join)
def test_an_address_of_the_endpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str, command: list[str]
) -> None:
    monkeypatch.setenv("ANTREAN_BASE_URL", value)
    assert_is_a_sentence(command, capsys)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1"),
        ("http_proxy", "http://127.0.0.1:notaport"),
        ("http_proxy", "http://[::1"),
        ("http_proxy", "//"),
        ("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem"),
        ("SSL_CERT_DIR", "/nowhere"),
    ],
)
@pytest.mark.parametrize("command", [*SETTINGS_AND_ENDPOINT, ["models"]], ids=" ".join)
def test_a_way_to_the_endpoint(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    value: str,
    command: list[str],
) -> None:
    monkeypatch.setenv(variable, value)
    assert_is_a_sentence(command, capsys)


@pytest.mark.parametrize(
    "value",
    [
        "redis://h:99999",
        "redis://h/db",
        "redis://127.0.0.1:1/0?foo=bar",
        "redis://127.0.0.1:1/0?protocol=7",
        "rediss://127.0.0.1:1/0?ssl_cert_reqs=odd",
        "rediss://127.0.0.1:1/0?ssl_ca_certs=/nowhere",
        "redis+socket:///nowhere",
        "redis+socket:///" + "a" * 200,
        "redis+socket:///etc",
        "redis://u\udcff@127.0.0.1:1",
    ],
    ids=ascii,
)
def test_an_address_of_the_broker(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    monkeypatch.setenv("ANTREAN_BROKER_URL", value)
    assert_is_a_sentence(["check"], capsys)
    assert_is_a_sentence(["check", "--json"], capsys)


@pytest.mark.parametrize(
    "value",
    [
        "sqlite:///",
        "sqlite://h/x",
        "sqlite:////etc",
        "sqlite:////dev/null/x.db",
        "sqlite:////proc/x.db",
        "postgresql://h:port/d",
        "postgresql://127.0.0.1:1/d",
        "postgresql://127.0.0.1:1/d?sslmode=odd",
        "nonsense",
    ],
)
@pytest.mark.parametrize("command", LEDGER, ids=" ".join)
def test_an_address_of_the_database(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str, command: list[str]
) -> None:
    monkeypatch.setenv("ANTREAN_DATABASE_URL", value)
    assert_is_a_sentence(command, capsys)


def test_a_file_that_is_no_database_is_left_as_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slip of the pen may name any file, also one that everybody on this machine reads."""
    file = folder / "names.txt"
    file.write_text("root:x:0:0::/root:/bin/sh\n" * 50)
    file.chmod(0o644)
    monkeypatch.setenv("ANTREAN_DATABASE_URL", f"sqlite:///{file}")
    for command in LEDGER:
        assert_is_a_sentence(command, capsys)
    assert (file.stat().st_mode & 0o777, file.read_text()) == (0o644, "root:x:0:0::/root:/bin/sh\n" * 50)
    assert list(folder.glob("names.txt-*")) == []


@pytest.mark.parametrize("value", ["/dev/null", "/dev/null/x", "/proc/x", "/" + "a" * 300])
@pytest.mark.parametrize("command", LEDGER, ids=" ".join)
def test_a_home(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str, command: list[str]
) -> None:
    monkeypatch.setenv("ANTREAN_HOME", value)
    assert_is_a_sentence(command, capsys)


def test_a_database_that_is_damaged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # In a process of its own, which closes what it opened: then nothing of it is in the log beside the file.
    made = subprocess.run(
        [sys.executable, "-P", "-m", "worker.cli", "status"], env=_with_our_modules(), check=False
    )
    assert made.returncode == ExitCode.OK
    assert [path.name for path in (folder / ".antrean").glob("antrean.db*")] == ["antrean.db"]
    whole = (folder / ".antrean" / "antrean.db").read_bytes()
    (folder / ".antrean" / "antrean.db").write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))
    for command in LEDGER:
        assert_is_a_sentence(command, capsys)
    assert code_of(lambda: app(["doctor"], prog_name="antrean")) == ExitCode.FAILED_JOBS
    assert "damaged" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        ["worker", "--name", "a b"],
        ["worker", "--name", "a%q"],
        ["worker", "--name", "a\x1b[2J"],
        ["simulate", "--port", "99999"],
        ["simulate", "--latency", "nan"],
        ["simulate", "--host", "nobody.invalid", "--port", "0"],
        ["usage", "--since", "yesterday"],
        ["results", "batch_\udcff"],
    ],
    ids=ascii,
)
def test_an_argument(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert_is_a_sentence(command, capsys)


@pytest.mark.parametrize("url", ["http://[", "http://h:99999", "ftp://h", "http://127.0.0.1:1"])
def test_an_address_of_a_health_check(capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert code_of(lambda: app(["health", "--url", url], prog_name="antrean")) == 1
    assert url in capsys.readouterr().err
