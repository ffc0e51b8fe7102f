"""The deployment files say what antrean needs: checked without an engine to run them."""

from __future__ import annotations

import configparser
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from worker.cli.main import app
from worker.errors import SettingsError
from worker.settings import Settings, load_settings
from worker.settings.sources import unknown_names

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("migrate", "worker", "flower")
UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
MARGIN_S = 2.0  # a worker's own, after its grace


def seconds(span: str) -> float:
    found = re.fullmatch(r"(\d+)s", span)
    assert found, f"{span} is not in seconds"
    return float(found[1])


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def assert_understood(argv: list[str]) -> None:
    """`argv` is a command of antrean with options that it has."""
    command = commands()[argv[0]]
    command.make_context(argv[0], list(argv[1:]))


def unit(path: Path) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            values.setdefault(name, []).append(value)
    return values


def environment_file(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and line[0] != "#"]
    return dict(line.split("=", 1) for line in lines)


def instructions(name: str) -> list[str]:
    return [line.removeprefix(name).strip() for line in DOCKERFILE if line.startswith(f"{name} ")]


def test_the_compose_file_follows_the_compose_specification() -> None:
    schema = json.loads((ROOT / "tests/support/compose-spec.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    assert [error.message for error in validator.iter_errors(COMPOSE)] == []
    wrong = {"services": {"worker": {"stop_grace_periode": "40s"}}}
    assert list(validator.iter_errors(wrong)), "the schema would see a typing error"


def test_no_port_is_open_to_the_world() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:5555:5555"]
    assert not any("network_mode" in service for service in SERVICES.values())
    assert COMPOSE["networks"]["inside"]["internal"] is True
    for name in ("valkey", "postgres"):
        assert SERVICES[name]["networks"] == ["inside"]


def test_a_worker_has_the_time_to_end_its_calls() -> None:
    worker = SERVICES["worker"]
    grace_s = float(worker["environment"]["ANTREAN_GRACE_S"])
    assert seconds(worker["stop_grace_period"]) >= grace_s + MARGIN_S
    default_s = Settings.model_fields["grace_s"].default
    for path in UNITS:
        if "worker" in path.name:
            assert float(unit(path)["TimeoutStopSec"][0]) >= default_s + MARGIN_S


def test_every_command_is_one_of_antrean() -> None:
    for name in OURS:
        assert_understood(SERVICES[name]["command"])
    for line in instructions("CMD"):
        assert_understood(json.loads(line))


def test_every_health_check_is_a_command_of_antrean() -> None:
    entrypoint = json.loads(instructions("ENTRYPOINT")[0])
    for name in ("worker", "flower"):
        kind, *argv = SERVICES[name]["healthcheck"]["test"]
        assert (kind, argv[: len(entrypoint)]) == ("CMD", entrypoint)
        assert_understood(argv[len(entrypoint) :])
    (line,) = instructions("HEALTHCHECK")
    argv = json.loads(line[line.index("[") :])
    assert argv[: len(entrypoint)] == entrypoint
    assert_understood(argv[len(entrypoint) :])
    for name in ("valkey", "postgres"):
        assert SERVICES[name]["healthcheck"]["test"]


def test_every_name_in_an_environment_is_a_setting() -> None:
    for name in OURS:
        assert unknown_names(SERVICES[name]["environment"], Settings.model_fields) == []
    for path in UNITS:
        pairs = " ".join(unit(path)["Environment"]).split()
        assert unknown_names(dict(pair.split("=", 1) for pair in pairs), Settings.model_fields) == []
    for path in (ROOT / "deploy/systemd").glob("*.env"):
        assert unknown_names(environment_file(path), Settings.model_fields) == []


def settings_of_worker(folder: Path, monkeypatch: pytest.MonkeyPatch, **told: str) -> Settings:
    """The settings in the worker's container where `.env`, or the shell, has these variables."""
    for name in os.environ:
        if name.startswith("ANTREAN_"):
            monkeypatch.delenv(name)

    def fill_in(found: re.Match[str]) -> str:
        assert found[2].startswith(":-"), "what is not set has a default"
        return told.get(found[1], "") or found[2].removeprefix(":-")

    for name, value in SERVICES["worker"]["environment"].items():
        filled = re.sub(r"\$\{(\w+)([^}]*)\}", fill_in, value)
        secret = re.fullmatch(r"/run/secrets/(\w+)", filled)
        if secret is not None:
            filled = str(folder / secret[1])
            (folder / secret[1]).write_text("secret\n")
        monkeypatch.setenv(name, filled)
    monkeypatch.setenv("ANTREAN_HOME", str(folder / "home"))
    monkeypatch.chdir(folder)
    return load_settings()


def test_no_container_and_no_unit_goes_to_an_address_that_nobody_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for service in SERVICES.values():
        assert service.get("environment", {}).get("ANTREAN_BASE_URL", "") in ("", "${ANTREAN_BASE_URL:-}")
    with pytest.raises(SettingsError, match="ANTREAN_BASE_URL is set to nothing"):
        settings_of_worker(tmp_path, monkeypatch)
    assert environment_file(ROOT / "deploy/systemd/antrean.env")["ANTREAN_BASE_URL"] == "", (
        "empty: the worker ends with a sentence"
    )


def test_a_container_is_told_where_requests_go_by_an_address_or_by_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = settings_of_worker(tmp_path, monkeypatch, ANTREAN_BASE_URL="http://10.0.0.1:8000")
    assert one.base_url == "http://10.0.0.1:8000"
    tables = json.dumps(
        {"east": {"base_url": "http://10.0.0.2:8000"}, "west": {"base_url": "http://10.0.0.3"}}
    )
    several = settings_of_worker(tmp_path, monkeypatch, ANTREAN_ENDPOINT_TABLES=tables)
    assert [each.name for each in several.endpoints] == ["east", "west"]
    (tmp_path / "antrean.toml").write_text('[endpoints.north]\nbase_url = "http://10.0.0.4:8000"\n')
    (tmp_path / "antrean.toml").chmod(0o644)
    in_a_file = settings_of_worker(tmp_path, monkeypatch)
    assert [each.name for each in in_a_file.endpoints] == ["north"]


def test_every_secret_comes_from_a_file_and_is_given_to_those_who_read_it() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert all(list(secret) == ["file"] for secret in COMPOSE["secrets"].values())
    assert (ROOT / "deploy/.gitignore").read_text().split() == ["secrets/"]
    for name, service in SERVICES.items():
        told = json.dumps(
            [service.get("environment", {}), service.get("command"), service.get("healthcheck")]
        )
        read = set(re.findall(r"/run/secrets/(\w+)", told))
        assert read == set(service["secrets"]), name
    assert not re.search(r"password\s*:\s*\S", text.replace("_password: {file", ""), re.IGNORECASE)
    # What only looks on has neither the key nor the ledger.
    assert set(SERVICES["flower"]["secrets"]) == {"flower_password", "broker_password"}
    assert SERVICES["migrate"]["secrets"] == ["database_password"]
    assert not [name for name in SERVICES["flower"]["environment"] if "DATABASE" in name or "API_KEY" in name]
    assert not [name for name in environment_file(ROOT / "deploy/systemd/flower.env") if "BROKER" not in name]


def test_no_part_takes_the_whole_machine() -> None:
    for name, service in SERVICES.items():
        assert re.search(r"\d+[mg]", service["mem_limit"]), name
        assert service["pids_limit"] > 0, name
    largest = load_settings(concurrency=4000, _env_file=None)
    for limit in (SERVICES["worker"]["pids_limit"], int(unit(worker_unit())["TasksMax"][0])):
        assert largest.thread_count + 100 < limit
    # The broker says no before it is ended.
    (maxmemory,) = re.findall(r"--maxmemory (\d+)mb", SERVICES["valkey"]["command"][-1])
    assert int(maxmemory) * 2 <= int(SERVICES["valkey"]["mem_limit"].removesuffix("m"))


def worker_unit() -> Path:
    return next(path for path in UNITS if "worker" in path.name)


def test_the_broker_keeps_what_it_has_and_evicts_nothing() -> None:
    script = SERVICES["valkey"]["command"][-1]
    assert "--appendonly yes" in script
    assert "--maxmemory-policy noeviction" in script
    assert "--requirepass" not in script, "an argument would be seen by every process list"
    assert SERVICES["valkey"]["volumes"] == ["broker:/data"]


def test_what_must_outlive_a_container_is_in_a_volume() -> None:
    (home,) = re.findall(r"ANTREAN_HOME=(\S+)", " ".join(DOCKERFILE))
    assert SERVICES["worker"]["volumes"] == [f"home:{home}"]
    assert SERVICES["postgres"]["volumes"] == ["database:/var/lib/postgresql"]
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert used == set(COMPOSE["volumes"])


def test_things_start_in_an_order_that_works() -> None:
    conditions = {
        (name, other): depends["condition"]
        for name, service in SERVICES.items()
        for other, depends in service.get("depends_on", {}).items()
    }
    assert conditions == {
        ("migrate", "postgres"): "service_healthy",
        ("worker", "migrate"): "service_completed_successfully",
        ("worker", "valkey"): "service_healthy",
        ("flower", "valkey"): "service_healthy",
    }


def test_our_containers_may_do_nothing_they_need_not() -> None:
    for name in OURS:
        service = SERVICES[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(instructions("USER")[-1].split(":")[0]) >= 10000


def test_the_image_holds_our_modules_and_nothing_else_of_this_folder() -> None:
    copied = [line.split()[0] for line in instructions("COPY") if not line.startswith("--from")]
    assert sorted(copied) == ["api_client", "requirements.lock", "schemas", "worker"]
    assert all((ROOT / name).exists() for name in copied)
    lines = (ROOT / ".dockerignore").read_text().split("\n")
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*"
    let_in = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    assert sorted(let_in) == sorted(copied)
    assert any(fnmatch.fnmatch("worker/__pycache__", pattern) for pattern in patterns[1:])
    assert {line.split()[0] for line in instructions("FROM")} == {"python:${PYTHON}"}
    assert re.fullmatch(r"PYTHON=3\.\d+-slim@sha256:[0-9a-f]{64}", instructions("ARG")[0])
    assert "--require-hashes" in " ".join(DOCKERFILE)


def test_the_images_of_others_are_held_to_a_digest() -> None:
    images = [one["image"] for one in COMPOSE["services"].values() if "build" not in one and "image" in one]
    others = sorted({image for image in images if not image.startswith("antrean")})
    assert [image.split(":")[0] for image in others] == ["postgres", "valkey/valkey"]
    assert all(re.fullmatch(r"[a-z/]+:\d+@sha256:[0-9a-f]{64}", image) for image in others), others


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_runs_a_command_of_antrean_and_is_always_started_again(path: Path) -> None:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(path)
    service = parser["Service"]
    argv = shlex.split(service["ExecStart"].replace("%%", "%"))
    assert argv[1:4] == ["-P", "-m", "worker.cli"]
    assert_understood(argv[4:])
    user = "antrean-flower" if "flower" in path.name else "antrean"
    assert (service["Restart"], service["KillSignal"], service["User"]) == ("always", "SIGTERM", user)
    assert service["StateDirectory"] == user, "each in a home of its own"
    assert service["LimitCORE"] == "0", "a core holds the key and the prompts"
    assert {"TasksMax", "MemoryMax"} <= set(service)
    assert service["NoNewPrivileges"] == "yes"
    assert parser["Unit"]["StartLimitIntervalSec"] == "0", "systemd must not give up"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_finds_little_left_to_close(path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "Unknown" in done.stderr or "unrecognized option" in done.stderr:
        pytest.skip("this systemd cannot look at a file")
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_understands_the_unit(path: Path, tmp_path: Path) -> None:
    name = path.name.replace("@.", "@1.")
    # It looks for the program, which is elsewhere on this machine.
    text = path.read_text().replace("/opt/antrean/.venv/bin/python", sys.executable)
    (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_variable_of_the_compose_file_may_stand_in_env() -> None:
    """Both read the same `.env`: one that antrean does not know would stop all its commands there."""
    named = dict.fromkeys(
        re.findall(r"\$\{(ANTREAN_[A-Z_]+)", (ROOT / "docker-compose.yml").read_text()), "x"
    )
    assert len(named) > 5
    assert unknown_names(named, Settings.model_fields) == []
