"""The arithmetic of the bench of limits, on runs whose figures are known."""

from __future__ import annotations

import pytest

from bench.limits.command import NAMES, parse_options
from bench.limits.extras import budget_figures, cpu_figures, two_endpoints_figures
from bench.limits.figures import (
    Row,
    end_of_share_s,
    highest_in_flight,
    mean_in_flight,
    rate,
    reached_after_s,
    rows_of,
    rows_of_events,
    share_refused,
    windows,
)
from bench.limits.real import NotBuilt, concurrency_of, require_command, require_option, require_setting
from bench.limits.report import Result, format_results, format_wanted
from bench.limits.scenarios import PERCENT, SCENARIOS, SECONDS, Wanted
from bench.limits.simulated import run_simulated


def steady(seconds: float, **each: int) -> list[Row]:
    """The same counts in each tenth of a second."""
    return [Row(**each)] * round(seconds * 10)  # type: ignore[arg-type]


def served(limit: int, jobs: int, latency_s: float) -> list[Row]:
    """A perfect run: `limit` calls begin together, again and again, and end together."""
    rows, wave = [], round(latency_s * 10)
    for done in range(0, jobs, limit):
        size = min(limit, jobs - done)
        busy = Row(max_in_flight=size, mean_in_flight=size)
        rows += [Row(calls=size, max_in_flight=size, mean_in_flight=size), *([busy] * (wave - 2))]
        rows.append(Row(paid=size, max_in_flight=size, mean_in_flight=size))
    return rows


def test_a_run_begins_with_the_first_call() -> None:
    counts = {"paid": 0, "refused": 0, "tokens": 0, "completion_tokens": 0, "at_s": 0.0}
    told = [
        {**counts, "calls": calls, "max_in_flight": calls, "mean_in_flight": 0.5} for calls in (0, 0, 3, 0)
    ]
    assert rows_of(told) == [
        Row(calls=3, max_in_flight=3, mean_in_flight=0.5),
        Row(max_in_flight=0, mean_in_flight=0.5),
    ]
    assert rows_of(told[:2]) == []


def test_events_become_rows() -> None:
    rows = rows_of_events([0.0, 0.05, 0.1], [(0.31, 7)], [0.15], length_s=0.5)
    assert [row.calls for row in rows] == [2, 1, 0, 0, 0]
    assert [row.refused for row in rows] == [0, 1, 0, 0, 0]
    assert [(row.paid, row.tokens, row.completion_tokens) for row in rows][3] == (1, 7, 7)
    assert [row.max_in_flight for row in rows] == [2, 2, 2, 2, 1]


def test_a_rate_counts_only_its_own_time() -> None:
    rows = steady(10, paid=3) + steady(10, paid=1)
    assert rate(rows, "paid", 5, 15) == pytest.approx(20)
    assert rate(rows, "paid", 15, 25) == pytest.approx(5), "what was not reached counts as nothing"


def test_the_share_of_refused_calls() -> None:
    rows = steady(1, calls=4, refused=3) + steady(1, calls=4)
    assert (share_refused(rows), share_refused(rows, 1.0), share_refused([])) == (0.375, 0, 0)


def test_the_end_of_a_share_of_all_answers() -> None:
    rows = [*steady(9.9, paid=1), *steady(10.0), Row(paid=1)]
    assert end_of_share_s(rows, 0.99) == pytest.approx(9.9)
    assert end_of_share_s(rows, 1.0) == pytest.approx(20.0)
    with pytest.raises(ValueError, match="nothing was answered"):
        end_of_share_s(steady(1, calls=1), 1.0)


def test_the_worst_window_is_found_wherever_it_begins() -> None:
    rows = steady(1.5, calls=1) + steady(1.0, calls=3) + steady(1.5, calls=1)
    assert max(windows(rows, "calls", 1.0, 0.0, 4.0)) == 30
    assert min(windows(rows, "calls", 1.0, 0.0, 4.0)) == 10
    with pytest.raises(ValueError, match="less than a window"):
        windows(rows, "calls", 5.0, 0.0, 4.0)


def test_a_rate_is_reached_where_its_window_begins() -> None:
    rows = steady(4, paid=1) + steady(6, paid=5)
    assert reached_after_s(rows, "paid", 50, from_s=1.0, width_s=2.0) == pytest.approx(3.0)
    assert reached_after_s(rows, "paid", 51, from_s=1.0, width_s=2.0) is None


def test_calls_in_flight() -> None:
    rows = [Row(max_in_flight=level, mean_in_flight=level) for level in (1, 2, 6, 3)]
    assert (highest_in_flight(rows, 0.0, 0.2), mean_in_flight(rows, 0.0, 0.4)) == (2, 3.0)
    assert (highest_in_flight([], 0.0, 1.0), mean_in_flight([], 0.0, 1.0)) == (0, 0.0)


def met(name: str, rows: list[Row], *, is_quick: bool = False) -> dict[str, bool]:
    scenario = SCENARIOS[name](is_quick=is_quick)
    found = scenario.judge(rows)
    assert set(found) == set(scenario.wanted)
    return {key: one.is_met(found[key]) for key, one in scenario.wanted.items()}


def test_a_perfect_run_is_as_wanted() -> None:
    assert all(met("refuses-above", served(40, 1500, 0.5)).values())
    knee = Row(completion_tokens=240, max_in_flight=26, mean_in_flight=25)
    assert all(met("knee", [knee] * 900).values())
    well, shut = steady(30, paid=8, calls=8), steady(20, calls=2, refused=2)
    assert all(met("burst", well + shut + steady(5, paid=1) + steady(15, paid=8)).values())
    assert all(met("doubles", well + steady(20, paid=8) + steady(50, paid=16)).values())
    assert all(met("two-workers", [Row(max_in_flight=60, mean_in_flight=59)] * 900).values())
    assert all(met("minute", steady(150, calls=1, paid=1)).values())


def test_a_poor_run_is_not_as_wanted() -> None:
    tail = served(40, 1480, 0.5) + served(1, 20, 0.5)
    assert [name for name, is_met in met("refuses-above", tail).items() if not is_met] == [
        "seconds",
        "of_ideal",
        "tail",
    ]
    many = Row(completion_tokens=240, max_in_flight=100, mean_in_flight=100)
    assert not met("knee", [many] * 900)["highest"]
    assert not met("knee", steady(90, completion_tokens=100))["reached"]
    gone = steady(30, paid=8, calls=8) + steady(40, calls=1, refused=1)
    assert not met("burst", gone)["back"]
    assert not met("two-workers", [Row(max_in_flight=64, mean_in_flight=50)] * 900)["highest"]
    above = met("minute", steady(60, calls=1, paid=1) + steady(90, calls=2, paid=1))
    assert (above["above"], above["below"]) == (False, True)


def test_jobs_that_were_never_done_are_not_hidden_by_a_quick_end() -> None:
    scenario = SCENARIOS["refuses-above"](is_quick=False)
    found = scenario.judge(served(40, 400, 0.5))
    assert (found["done"], found["of_ideal"]) == (pytest.approx(400 / 1500), pytest.approx(1.0))
    assert not scenario.wanted["done"].is_met(found["done"])


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_decisions_alone_are_as_wanted_where_this_version_has_them(name: str) -> None:
    scenario = SCENARIOS[name](is_quick=False)
    try:
        rows = run_simulated(scenario)
    except NotBuilt:
        pytest.skip("not built")
    found = scenario.judge(rows)
    misses = {key: found[key] for key, one in scenario.wanted.items() if not one.is_met(found[key])}
    assert not misses, found


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_short_scenario_has_the_same_figures(name: str) -> None:
    whole, quick = (SCENARIOS[name](is_quick=is_quick) for is_quick in (False, True))
    assert list(whole.wanted) == list(quick.wanted)
    assert quick.jobs < whole.jobs and (quick.length_s or 0) <= (whole.length_s or 0)


def test_a_budget_is_overshot_by_what_goes_beyond_it() -> None:
    assert budget_figures(99_000, 100_000) == {"overshoot": 0, "used": 0.99}
    assert budget_figures(100_001, 100_000)["overshoot"] == 1


def test_cpu_is_told_beside_that_of_a_fixed_number() -> None:
    assert cpu_figures({"right": 2.0, "auto": 2.1}) == {
        "right": {"cpu_ms": 2.0},
        "auto": {"cpu_ms": 2.1, "ratio": pytest.approx(1.05)},
    }


def test_the_setting_of_each_worker() -> None:
    scenario = SCENARIOS["two-workers"](is_quick=True)
    found = {one: concurrency_of(one, scenario) for one in ("auto", "right", "fixed-16")}
    assert found == {"auto": "auto", "right": 30, "fixed-16": 16}


def test_what_this_version_does_not_have_is_not_built() -> None:
    require_setting(concurrency=16)
    require_command("submit")
    require_option("submit", "--json")
    for refused in (
        lambda: require_setting(concurrency="as many as you like"),
        lambda: require_command("guess"),
        lambda: require_option("submit", "--guess"),
        lambda: require_option("guess", "--json"),
    ):
        with pytest.raises(NotBuilt):
            refused()


def test_a_miss_is_bold_where_it_is_judged() -> None:
    wanted = {"seconds": Wanted("seconds", SECONDS, high=22.0), "refused": Wanted("refused", PERCENT)}
    result = Result("one", "an endpoint", wanted)
    result.found |= {"auto": {"seconds": 30.0, "refused": 0.5}, "openai": "not built"}
    judged = format_results([result], is_judged=True)
    assert "**30.0 s**" in judged and "**50.0 %**" not in judged and "not built" in judged
    assert "16 fixed" not in judged, "a column that nobody has is left out"
    assert "**30.0 s**" not in format_results([result], is_judged=False)
    assert len({len(line) for line in judged.splitlines()}) == 1


def test_what_was_never_reached_is_said() -> None:
    result = Result("one", "an endpoint", {"found": Wanted("found after", SECONDS, high=60.0)})
    result.found["auto"] = {"found": None}
    assert "**never**" in format_results([result], is_judged=True)


def test_bounds_are_told_in_the_unit_of_their_figure() -> None:
    assert format_wanted(Wanted("", PERCENT, low=0.95, high=1.02)) == "≥ 95.0 %, ≤ 102.0 %"
    assert format_wanted(Wanted("", SECONDS)) == ""


def test_scenarios_and_contenders_are_chosen_by_name() -> None:
    assert parse_options([]).scenarios == NAMES
    chosen = parse_options(["knee", "cpu", "--contenders", "auto, openai", "--quick", "--json"])
    assert (chosen.scenarios, chosen.contenders) == (("knee", "cpu"), ("auto", "openai"))
    assert chosen.is_quick and chosen.is_json


@pytest.mark.parametrize("arguments", [["nothing"], ["--contenders", "nobody"], ["--jobs", "3"]])
def test_names_that_are_not_known_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err


def test_calls_to_a_dead_endpoint_are_counted_for_each_probe() -> None:
    assert two_endpoints_figures(0, 4, 4, 20.0) == {"lost": 0.0, "calls_to_the_dead": 1.0, "seconds": 20.0}
    assert two_endpoints_figures(2, 8, 4, 20.0)["calls_to_the_dead"] == 2.0
