"""Decides from the settings which parts `antrean up` runs. Pure: nothing is started here."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from worker.reports.summary import format_count
from worker.settings import IN_STACK, Settings
from worker.stack.environment import inherited_environment
from worker.stack.part import Recipe

_PYTHON = (sys.executable, "-P", "-m")  # -P: the current folder may hold another `worker.py`
# A worker ends by itself within its grace and 2 s. The margin is for a machine under load.
_WORKER_MARGIN_S = 5.0
_FLOWER_STOP_S = 5.0
_FIGURES_STOP_S = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts of a stack, and the facts that are printed once they are ready."""

    workers: tuple[Recipe, ...]
    flower: Recipe | None
    figures: Recipe
    flower_address: tuple[str, int]  # host and port at which Flower answers on this machine
    flower_login: str
    grace_s: float

    @property
    def ready_sentence(self) -> str:
        workers = format_count(len(self.workers), "worker")
        if self.flower is None:
            return f"ready: {workers}"
        host, port = self.flower_address
        shown = f"[{host}]" if ":" in host else host
        return f"ready: {workers}, Flower on http://{shown}:{port} ({self.flower_login})"


def make_plan(
    settings: Settings,
    environ: Mapping[str, str],
    *,
    workers: int,
    flower_port: int | None,
    health_interval_s: float,
) -> Plan:
    """The parts for these settings. `flower_port` None: without Flower."""
    env = _environment(settings, environ)
    # Parts that make no calls get no key.
    of_keys = {one.api_key_env for one in settings.endpoint_tables}
    keyless = _environment(
        settings.without_keys(), {name: value for name, value in environ.items() if name not in of_keys}
    )
    worker_stop_s = settings.grace_s + _WORKER_MARGIN_S
    flower = None
    if flower_port is not None:
        address = settings.flower_address
        argv = (*_PYTHON, "worker.cli", "flower", "--port", str(flower_port), "--address", address)
        # Flower does not need the ledger either: what it shows comes from events.
        broker_only = {
            name: value for name, value in keyless.items() if not name.startswith("ANTREAN_DATABASE_")
        }
        flower = Recipe("flower", argv, broker_only, settings.home, _FLOWER_STOP_S)
    return Plan(
        workers=tuple(
            Recipe(
                f"worker{number}",
                (*_PYTHON, "worker.cli", "worker", "-n", f"w{number}@%h"),
                env,
                settings.home,
                worker_stop_s,
            )
            for number in range(1, workers + 1)
        ),
        flower=flower,
        figures=Recipe(
            "figures",
            (*_PYTHON, "worker.stack.figures", str(health_interval_s)),
            keyless,
            settings.home,
            _FIGURES_STOP_S,
        ),
        flower_address=(reachable_host(settings.flower_address), flower_port or 0),
        flower_login=_describe_login(settings),
        grace_s=settings.grace_s,
    )


def reachable_host(address: str) -> str:
    """The host under which this machine reaches a service that listens on `address`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(address, address)


def _describe_login(settings: Settings) -> str:
    if not settings.flower_auth:
        return "without a password"
    if settings.flower_password_file is not None:
        return f"user antrean, password in {settings.flower_password_file}"
    if settings.flower_password is not None:
        return "user antrean, password in ANTREAN_FLOWER_PASSWORD"
    return f"user antrean, password in {settings.home / 'flower.password'}"


def _environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of the parts: this process's own, with the settings as they were read, and antrean's modules."""
    env = inherited_environment(environ)
    env["PYTHONUNBUFFERED"] = "1"  # lines are shown as soon as they are written
    return {**env, **settings.as_environment(), IN_STACK: "1"}
