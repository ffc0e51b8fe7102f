"""`antrean simulate`: a simulated endpoint, with faults and limits on demand, until it is stopped."""

from __future__ import annotations

from typing import Annotated

import typer

from worker.cli.console import out
from worker.errors import InputError, Unreachable


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "simulate",
        epilog="Example: antrean simulate --port 8080 --latency 2 --fault-rate 0.1\n\n"
        "Example: antrean simulate --refuse-above 40 --at 60:capacity=2\n\n"
        "Example: antrean simulate --knee 24 --call-tokens 40 --answer-tokens 300 --answer-spread 0.8",
    )(simulate)


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
    tpm: Annotated[
        int | None, typer.Option(help="Tokens a minute and key, of prompts and answers, before 429 answers.")
    ] = None,
    rate_window: Annotated[float, typer.Option(help="Seconds of the window of --rpm and --tpm.")] = 60.0,
    rate_shape: Annotated[
        str, typer.Option(help="Of --rpm and --tpm: sliding, window (with fixed ends) or bucket.")
    ] = "sliding",
    rate_headers: Annotated[
        bool,
        typer.Option("--rate-headers", help="Say what is left of both in x-ratelimit-* of every answer."),
    ] = False,
    no_tell_wait: Annotated[
        bool, typer.Option("--no-tell-wait", help="Leave Retry-After out of the 429s of --rpm and --tpm.")
    ] = False,
    refuse_above: Annotated[int | None, typer.Option(help="Calls at once before more are refused.")] = None,
    refuse_keys_above: Annotated[
        str, typer.Option(help="The same for each key of --key, in their order, as in 4,20.")
    ] = "",
    refuse_status: Annotated[int, typer.Option(help="The status of that: 402, 429 or 503.")] = 429,
    refuse_wait: Annotated[
        float | None, typer.Option(help="Seconds that it asks to wait; nothing is said without it.")
    ] = None,
    refuse_code: Annotated[
        str | None, typer.Option(help="A code in its body, in OpenAI's form of an error.")
    ] = None,
    slope: Annotated[
        float | None, typer.Option(help="How fast calls at once may rise, a second, before more are refused.")
    ] = None,
    call_tokens: Annotated[
        float | None, typer.Option(help="Tokens a second of one call; answers take so much longer.")
    ] = None,
    knee: Annotated[
        int | None,
        typer.Option(help="Calls at once beyond which all share the tokens a second of so many."),
    ] = None,
    answer_tokens: Annotated[
        int | None, typer.Option(help="Tokens of an answer; in the mean if spread.")
    ] = None,
    answer_spread: Annotated[float, typer.Option(help="Sigma of lognormal lengths; 0: all the same.")] = 0.0,
    capacity: Annotated[float, typer.Option(help="A factor on --refuse-above and --knee.")] = 1.0,
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<str>",
            help="An option changes after so many seconds, as in 30:capacity=0.5; may be given several times.",
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            envvar="ANTREAN_SIMULATOR_KEY",
            show_envvar=False,
            help="The keys to ask for, with commas between them; none without it.",
        ),
    ] = None,
    spent_keys: Annotated[str, typer.Option(help="Keys that get 402, with commas between them.")] = "",
    revoked_keys: Annotated[str, typer.Option(help="Keys that get 401, with commas between them.")] = "",
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="<str>", help="A model to run; may be given several times."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes faults and lengths the same each time.")] = None,
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
    """Serve a simulated endpoint, with faults and limits on demand.

    It answers chat completions and lists models as the documented endpoint does. To be used with
    ANTREAN_BASE_URL=http://127.0.0.1:8080 and any key, or that of --key or ANTREAN_SIMULATOR_KEY. Ctrl-C ends it.

    Its limits can be combined: calls at once, their rise, calls and tokens a minute. With --call-tokens and --knee it
    is a batching server, which never refuses. Options change by --at, and by POST to /simulator/faults;
    /simulator/stats and /simulator/series show its counts.
    """
    # Local: only this command needs an event loop.
    from api_client.simulator import SimulatorConfig, parse_step, serve

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
            spent_keys=spent_keys,
            revoked_keys=revoked_keys,
            refuse_above=refuse_above,
            refuse_keys_above=refuse_keys_above,
            refuse_status=refuse_status,
            refuse_retry_after_s=refuse_wait,
            refuse_code=refuse_code,
            slope_per_s=slope,
            tpm=tpm,
            rate_window_s=rate_window,
            rate_shape=rate_shape,
            rate_headers=rate_headers,
            tells_wait=not no_tell_wait,
            call_tokens_per_s=call_tokens,
            knee=knee,
            answer_tokens=answer_tokens,
            answer_spread=answer_spread,
            capacity=capacity,
            timetable=tuple(map(parse_step, at or ())),
            auth_header=auth_header,  # type: ignore[arg-type]  # checked by the configuration itself
        )
    except ValueError as exc:
        raise InputError(str(exc)) from None
    try:
        serve(config, lambda url: out.print(f"listening on {url}"))
    except (OSError, UnicodeError, TypeError) as exc:
        reason = getattr(exc, "strerror", None) or "it is no address"
        raise Unreachable(f"{host}:{port} cannot be listened on ({reason}): choose another --port") from None
