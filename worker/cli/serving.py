"""`antrean worker` and `simulate`: the commands that run until they are stopped."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from worker.cli.console import out
from worker.errors import InputError, Unreachable
from worker.settings import IN_STACK, load_settings
from worker.text.wrapping import terminal_width

_BANNER_COLUMNS = 100


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(
        "worker",
        epilog="Example: ANTREAN_CONCURRENCY=64 antrean worker\n\n"
        "Example: antrean submit requests.jsonl && antrean worker --drain",
    )(worker)
    app.command("simulate", epilog="Example: antrean simulate --port 8080 --latency 2 --fault-rate 0.1")(
        simulate
    )


def worker(
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Celery's node name, such as bulk@%h.")
    ] = None,
    drain: Annotated[
        bool, typer.Option("--drain", help="End when nothing is left to do for the endpoint.")
    ] = False,
) -> None:
    """Work on queued jobs until stopped.

    The same as `celery -A worker worker`. ANTREAN_CONCURRENCY says how many calls it makes at once; `auto`, the
    default, finds that by itself.

    SIGTERM or Ctrl-C lets calls in flight end within ANTREAN_GRACE_S and gives the others back unburnt.

    With --drain it ends by itself when no job of the endpoint is queued, waiting or running, here or at another worker:
    with 0, with 1 when jobs failed meanwhile, with 130 when it was stopped before. It waits out retries, shut gates and
    pauses; jobs of a run that was stopped are left to that run.
    """
    settings = load_settings()
    # Local: Celery takes a third of a second that other commands need not pay.
    from celery.bin.celery import celery

    from worker.celery import app

    # Beside other processes, twenty lines of banner are noise; in a narrow terminal they are torn.
    columns = terminal_width(1) or _BANNER_COLUMNS
    quiet = ["--quiet"] if IN_STACK in os.environ or columns < _BANNER_COLUMNS else []
    argv = [*quiet, "worker", "--loglevel", settings.log_level.upper()]
    if name:
        _check_node_name(name)
        argv += ["--hostname", name]
    if drain:
        argv.append("--drain")
    # `app.worker_main` does the same and drops the exit code.
    celery.params[0].default = app
    raise typer.Exit(celery.main(args=argv, standalone_mode=False) or 0)


def _check_node_name(name: str) -> None:
    from celery.utils.nodenames import default_nodename, host_format  # local: as above

    try:
        known = host_format(default_nodename(name))
    except ValueError:  # a % and a letter that Celery fills nothing in for
        known = ""
    if not known.isprintable() or not known or " " in known:
        raise InputError(
            "--name: must be printable, without spaces, and of the forms with % only %h (host), %n, %d and %%"
        )


def simulate(
    port: Annotated[int, typer.Option(help="Where to listen; 0 takes a free port.")] = 8080,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    latency: Annotated[float, typer.Option(help="Seconds to an answer.")] = 0.5,
    latency_jitter: Annotated[float, typer.Option(help="Share of the latency, up and down.")] = 0.0,
    fault_rate: Annotated[
        float,
        typer.Option(
            help="Share of calls that fail, evenly: the faults from 429 to cut bodies, but no hangs."
        ),
    ] = 0.0,
    rpm: Annotated[int | None, typer.Option(help="Calls a minute and key before 429 answers.")] = None,
    key: Annotated[
        str | None,
        typer.Option(
            envvar="ANTREAN_SIMULATOR_KEY", show_envvar=False, help="The key to ask for; none without it."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="<str>", help="A model to run; may be given several times."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the faults the same each time.")] = None,
    rate_429: Annotated[float, typer.Option("--rate-429", help="Share of 429 with Retry-After.")] = 0.0,
    rate_429_bare: Annotated[float, typer.Option("--rate-429-bare", help="Share of 429 without.")] = 0.0,
    rate_500: Annotated[float, typer.Option("--rate-500", help="Share of 500.")] = 0.0,
    rate_502: Annotated[float, typer.Option("--rate-502", help="Share of 502 with an HTML page.")] = 0.0,
    rate_reset: Annotated[float, typer.Option(help="Share of connections reset.")] = 0.0,
    rate_hang: Annotated[float, typer.Option(help="Share of calls never answered.")] = 0.0,
    rate_cut_json: Annotated[float, typer.Option(help="Share of answers with half a JSON.")] = 0.0,
    rate_cut_body: Annotated[float, typer.Option(help="Share of bodies shorter than promised.")] = 0.0,
    rate_drip: Annotated[float, typer.Option(help="Share of answers that drip, a byte at a time.")] = 0.0,
    rate_html: Annotated[float, typer.Option(help="Share of 200 with an HTML page.")] = 0.0,
    rate_empty: Annotated[float, typer.Option(help="Share of 200 without a body.")] = 0.0,
    rate_large: Annotated[float, typer.Option(help="Share of completions of 10 MB.")] = 0.0,
    rate_nul: Annotated[float, typer.Option(help="Share of completions with U+0000 in them.")] = 0.0,
    rate_surrogate: Annotated[
        float, typer.Option(help="Share of completions with a lone surrogate in them.")
    ] = 0.0,
    retry_after: Annotated[float, typer.Option(help="Seconds that a 429 asks to wait.")] = 1.0,
    unauthorized_for: Annotated[float, typer.Option(help="Seconds of 401 from the start.")] = 0.0,
    auth_header: Annotated[
        str, typer.Option(help="The header style taken: both, bearer or api-key.")
    ] = "both",
) -> None:
    """Serve a simulated endpoint, with faults on demand.

    It answers chat completions and lists models as the documented endpoint does. To be used with
    ANTREAN_BASE_URL=http://127.0.0.1:8080 and any key, or that of --key or ANTREAN_SIMULATOR_KEY. Ctrl-C ends it.
    """
    from api_client.simulator import SimulatorConfig, serve  # local: only this command needs an event loop

    try:
        config = SimulatorConfig(
            host=host,
            port=port,
            key=key,
            models=tuple(model) if model else ("DeepSeek-V3.1",),
            latency_s=latency,
            latency_jitter=latency_jitter,
            seed=seed,
            rpm=rpm,
            fault_rate=fault_rate,
            rate_429=rate_429,
            rate_429_bare=rate_429_bare,
            rate_500=rate_500,
            rate_502_html=rate_502,
            rate_reset=rate_reset,
            rate_hang=rate_hang,
            rate_cut_json=rate_cut_json,
            rate_cut_body=rate_cut_body,
            rate_drip=rate_drip,
            rate_html=rate_html,
            rate_empty=rate_empty,
            rate_large=rate_large,
            rate_nul=rate_nul,
            rate_surrogate=rate_surrogate,
            retry_after_s=retry_after,
            unauthorized_for_s=unauthorized_for,
            auth_header=auth_header,  # type: ignore[arg-type]  # checked by the configuration itself
        )
    except ValueError as exc:
        raise InputError(str(exc)) from None
    try:
        serve(config, lambda url: out.print(f"listening on {url}"))
    except (OSError, UnicodeError, TypeError) as exc:
        reason = getattr(exc, "strerror", None) or "it is no address"
        raise Unreachable(f"{host}:{port} cannot be listened on ({reason}): choose another --port") from None
