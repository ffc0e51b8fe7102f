"""What people call jobs by."""

from __future__ import annotations

import pytest

from worker.errors import InputError
from worker.operations.job_names import _beginning, names_of, parse_kinds

HEX = "0193f0a1000070008000000000000000"
ID = "0193f0a1-0000-7000-8000-000000000000"


@pytest.mark.parametrize(
    ("called", "names"),
    [
        (ID, [ID]),
        ("chosen", ["chosen"]),
        (f"batch_req_{HEX}", [f"batch_req_{HEX}", HEX, ID]),
        ("batch_req_chosen", ["batch_req_chosen", "chosen"]),
        ("batch_req_", ["batch_req_"]),
        ("", [""]),
    ],
)
def test_an_output_lines_id_names_its_job_with_dashes_or_without(called: str, names: list[str]) -> None:
    assert names_of(called) == names


@pytest.mark.parametrize(
    ("called", "beginning"),
    [
        ("0193f0a1-00", "0193f0a1-00"),
        ("batch_req_0193f0a1", "0193f0a1"),
        ("batch_req_0193f0a10", "0193f0a1-0"),
        (f"batch_req_{HEX}", ID),
        ("batch_req_zz", "batch_req_zz"),
        ("batch_req_", "batch_req_"),
    ],
)
def test_the_beginning_of_an_output_lines_id_is_that_of_its_jobs(called: str, beginning: str) -> None:
    assert _beginning(called) == beginning


def test_a_kind_that_no_job_keeps_is_refused_with_those_that_there_are() -> None:
    assert [kind.value for kind in parse_kinds(["timeout", "quota"])] == ["timeout", "quota"]
    with pytest.raises(InputError, match="interrupted is no kind of failure; the kinds are: bad_response, "):
        parse_kinds(["timeout", "interrupted"])
