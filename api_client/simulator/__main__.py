"""`python -m api_client.simulator`: a simulator in the foreground."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from api_client.simulator.config import SimulatorConfig
from api_client.simulator.serve import serve
from api_client.simulator.timetable import parse_step

KEY_VARIABLE = "ANTREAN_SIMULATOR_KEY"
EXIT_BAD_OPTION = 2
EXIT_CANNOT_LISTEN = 4


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Prints one sentence on stderr, without the usage, and ends the process."""
        self.exit(EXIT_BAD_OPTION, f"{message}\n")


def parse_config(arguments: Sequence[str], environ: Mapping[str, str]) -> SimulatorConfig:
    """The configuration of these arguments. Ends the process with exit code 2 if they are wrong.

    The key is that of --key, else that of the variable that --key-env names, else that of ANTREAN_SIMULATOR_KEY.
    Without any of these the simulator asks for no key.
    """
    parser = _build_parser()
    values = vars(parser.parse_args(arguments))
    key_variable = values.pop("key_env")
    if key_variable is not None and not environ.get(key_variable):
        parser.error(f"--key-env: the environment variable {key_variable} is not set")
    if values["key"] is None:
        values["key"] = environ.get(key_variable or KEY_VARIABLE) or None
    values["models"] = tuple(values["models"] or SimulatorConfig().models)
    try:
        values["timetable"] = tuple(map(parse_step, values["timetable"]))
        return SimulatorConfig(**values)
    except ValueError as exc:
        parser.error(str(exc))


def main(arguments: Sequence[str]) -> int:
    """Serves until SIGTERM or SIGINT, and returns the exit code."""
    config = parse_config(arguments, os.environ)
    try:
        serve(config, lambda url: print(f"listening on {url}", flush=True))
    except OSError as exc:
        print(_explain(exc, config), file=sys.stderr)
        return EXIT_CANNOT_LISTEN
    return 0


def _explain(error: OSError, config: SimulatorConfig) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {config.port} on {config.host} is in use: choose another with --port (0 for any free one)"
        )
    return f"cannot serve on {config.host}:{config.port}: {error}"


def _build_parser() -> argparse.ArgumentParser:
    defaults = SimulatorConfig()
    parser = _Parser(prog="simulator", description=__doc__, allow_abbrev=False)
    parser.add_argument("--host", default=defaults.host)
    parser.add_argument("--port", type=int, default=defaults.port, help="0 for any free one")
    parser.add_argument("--key", help=f"seen in the list of processes: prefer {KEY_VARIABLE} or --key-env")
    parser.add_argument("--key-env", metavar="NAME", help="the environment variable that holds the key")
    parser.add_argument("--model", dest="models", action="append", help="repeatable")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--rpm", type=int, help="calls a minute and key; more get a 429")
    parser.add_argument("--auth-header", default=defaults.auth_header, help="both, bearer or api-key")
    parser.add_argument("--log-calls", dest="log_calls_path", type=Path, help="gets a line a paid call")
    parser.add_argument("--spent-keys", default="", help="keys that get 402, with commas between them")
    parser.add_argument("--revoked-keys", default="", help="keys that get 401, with commas between them")
    parser.add_argument(
        "--refuse-keys-above",
        default="",
        help="calls at once of each key of --key, in their order, as in 4,20",
    )
    parser.add_argument("--refuse-code", help="a code in the body of a refusal for too many calls at once")
    parser.add_argument("--rate-shape", default=defaults.rate_shape, help="sliding, window or bucket")
    parser.add_argument("--rate-headers", action="store_true", help="x-ratelimit-* on every answer")
    parser.add_argument("--no-tell-wait", dest="tells_wait", action="store_false", help="no Retry-After")
    parser.add_argument(
        "--at",
        dest="timetable",
        action="append",
        default=[],
        metavar="SECONDS:OPTION=VALUE",
        help="an option changes after so many seconds, as in 30:capacity=0.5; repeatable",
    )
    for option, name in (
        ("--refuse-above", "refuse_above"),
        ("--refuse-status", "refuse_status"),
        ("--tpm", "tpm"),
        ("--knee", "knee"),
        ("--answer-tokens", "answer_tokens"),
    ):
        parser.add_argument(option, dest=name, type=int, default=getattr(defaults, name))
    for option, name in (
        ("--refuse-wait", "refuse_retry_after_s"),
        ("--slope", "slope_per_s"),
        ("--rate-window", "rate_window_s"),
        ("--call-tokens", "call_tokens_per_s"),
        ("--answer-spread", "answer_spread"),
        ("--capacity", "capacity"),
        ("--latency", "latency_s"),
        ("--latency-jitter", "latency_jitter"),
        ("--fault-rate", "fault_rate"),
        ("--rate-429", "rate_429"),
        ("--rate-429-bare", "rate_429_bare"),
        ("--rate-500", "rate_500"),
        ("--rate-502", "rate_502_html"),
        ("--rate-reset", "rate_reset"),
        ("--rate-hang", "rate_hang"),
        ("--rate-cut-json", "rate_cut_json"),
        ("--rate-cut-body", "rate_cut_body"),
        ("--rate-drip", "rate_drip"),
        ("--rate-html", "rate_html"),
        ("--rate-empty", "rate_empty"),
        ("--rate-large", "rate_large"),
        ("--rate-nul", "rate_nul"),
        ("--rate-surrogate", "rate_surrogate"),
        ("--retry-after", "retry_after_s"),
        ("--unauthorized-for", "unauthorized_for_s"),
    ):
        parser.add_argument(option, dest=name, type=float, default=getattr(defaults, name))
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
