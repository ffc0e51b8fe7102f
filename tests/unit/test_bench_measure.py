"""The arithmetic of the benchmarks, on runs whose figures are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.measure import (
    Sample,
    Span,
    Steady,
    cpu_at,
    cpu_per_job_ms,
    find_steady,
    medians,
    percentile,
    percentiles_beyond,
    ramp_up_s,
    rate_between,
    ratio,
    slope,
)
from bench.options import CONTENDERS, parse_options
from bench.report import format_ratios, format_table


def perfect_run(slots: int, waves: int, latency_s: float) -> list[Span]:
    """Every slot is refilled at once, and the slots are spread evenly over the latency."""
    return [
        Span(begin_s, begin_s + latency_s)
        for slot in range(slots)
        for wave in range(waves)
        for begin_s in [1000 + slot * latency_s / slots + wave * latency_s]
    ]


def test_a_perfect_run_reaches_the_ceiling() -> None:
    steady = find_steady(perfect_run(10, 8, 2.0), 10)
    assert steady.jobs == 60
    assert steady.jobs_per_s == pytest.approx(5.0)


def test_the_steady_part_leaves_out_a_slow_ramp_up_and_a_slow_drain() -> None:
    spans = perfect_run(10, 8, 2.0)
    late = [Span(900 + i, 902 + i) for i in range(10)]
    last = [Span(1016 + 20 * i, 1018 + 20 * i) for i in range(10)]
    assert find_steady([*late, *spans, *last], 10).jobs_per_s == pytest.approx(5.0, rel=0.05)


def test_too_few_jobs_have_no_steady_part() -> None:
    with pytest.raises(ValueError, match="too few"):
        find_steady(perfect_run(10, 2, 2.0), 10)


def test_the_ramp_up_ends_when_every_slot_was_taken() -> None:
    assert ramp_up_s([Span(1.0, 3.0), Span(1.5, 3.5), Span(9.0, 10.0)], 2) == 0.5


def test_latency_is_told_beyond_the_endpoints_and_of_the_steady_part_alone() -> None:
    spans = [Span(0.0, 9.0), Span(10.0, 12.01), Span(10.0, 12.03), Span(20.0, 29.0)]
    found = percentiles_beyond(spans, Steady(10.0, 20.0, 2), 2.0)
    assert found == {
        "p50": pytest.approx(10.0),
        "p95": pytest.approx(30.0),
        "p99": pytest.approx(30.0),
    }


@pytest.mark.parametrize(("share", "value"), [(1, 1), (50, 50), (95, 95), (99, 99), (100, 100)])
def test_a_percentile_is_a_value_that_occurred(share: int, value: int) -> None:
    assert percentile(range(1, 101), share) == value


def test_cpu_is_interpolated_between_samples() -> None:
    samples = [Sample(0.0, 1.0, 0), Sample(1.0, 2.0, 0), Sample(3.0, 2.0, 0)]
    assert [cpu_at(samples, at_s) for at_s in (0.0, 0.25, 1.0, 2.0, 3.0)] == [1.0, 1.25, 2.0, 2.0, 2.0]
    with pytest.raises(ValueError, match="not sampled"):
        cpu_at(samples, 3.1)


def test_cpu_a_job_is_that_of_the_steady_part() -> None:
    samples = [Sample(float(at_s), at_s * 0.5, 0) for at_s in range(11)]
    assert cpu_per_job_ms(samples, Steady(2.0, 6.0, 1000)) == pytest.approx(2.0)


def test_a_slope_is_found_through_noise_and_a_single_jump_is_not_a_slope() -> None:
    assert slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2)
    assert rate_between([(0, 10), (1, 10), (2, 60), (3, 60)]) == 0
    with pytest.raises(ValueError, match="two points"):
        slope([(1, 1), (1, 2)])


def test_rounds_are_merged_to_medians_and_words_are_kept() -> None:
    rounds = [{"cpu_ms": value, "name": "a", "none": None} for value in (3.0, 1.0, 2.0)]
    assert medians(rounds) == {"cpu_ms": 2.0, "name": "a", "none": None}


def test_a_ratio_to_nothing_is_none() -> None:
    assert ratio(1.0, 2.0) == 0.5
    assert ratio(None, 2.0) is None
    assert ratio(1.0, 0.0) is None
    assert ratio(1.0, None) is None


def test_a_table_is_straight() -> None:
    lines = format_table(("name", "jobs/s"), [("a", "1"), ("longer", "100.0")]).splitlines()
    assert {len(line) for line in lines} == {len(lines[0])}


def test_ratios_need_the_official_client() -> None:
    assert format_ratios({"antrean-sqlite": {}}) == ""


def test_a_quick_run_measures_every_contender_too() -> None:
    quick = parse_options(["--quick"])
    assert set(CONTENDERS) <= set(quick.only)
    assert [quick.job_count(one) for one in quick.measures] == [8 * 50]


def test_a_whole_run_measures_quick_answers_and_many_slots() -> None:
    whole = parse_options([])
    found = {(one.slots, one.latency_s): whole.job_count(one) for one in whole.measures}
    assert found == {(100, 0.2): 6000, (100, 0.5): 2400, (100, 2.0): 800, (500, 2.0): 4000}
    told = parse_options(["--slots", "10,20", "--latency", "0.5,1", "--jobs", "70"])
    assert [(one.slots, one.latency_s) for one in told.measures] == [
        (10, 0.5),
        (20, 0.5),
        (10, 1.0),
        (20, 1.0),
    ]
    assert [told.job_count(one) for one in told.measures] == [70, 80, 70, 80]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--slots", "many"],
        ["--slots", "0"],
        ["--latency", "0"],
        ["--latency", "soon"],
        ["--only", "nothing"],
        ["--repeat", "0"],
    ],
)
def test_options_without_sense_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err


def test_results_go_to_a_folder_of_the_bench_unless_told_otherwise(tmp_path: Path) -> None:
    assert parse_options([]).out.name == "results"
    assert parse_options(["--out", str(tmp_path)]).out == tmp_path
