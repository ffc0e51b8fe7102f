"""Distinguishes an outage of the endpoint from a job's own failure. Pure.

One failed call does not say whose fault it is. A run of failures of different jobs, without a success in between, is an
outage if it is so long that it would be very unlikely at the endpoint's usual rate of failures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from schemas.failure import Failure, FailureKind
from worker.policy.gates import SEVERAL
from worker.policy.retry import is_local

HEALTHY_RATE = 0.05  # the lowest rate of failures that is assumed of any endpoint
# The rate is learnt from this many answers. They must be more than the calls in flight, or one burst would decide it.
KNOWN_FROM = 1000
_ACCIDENT = 2e-4
_LONGEST_RUN = 16
# Failed calls often return before answered ones, which makes runs of failures longer. So the failed calls must also be
# a larger share of the calls that began at the same time than the endpoint's usual rate explains.
_PART = 0.25
_LARGEST_PART = 0.7
_OF_THE_REQUEST = frozenset({400, 413, 415, 422})
_SAME_WORDS_FOR_REQUESTS = 5
_TROUBLE = frozenset({FailureKind.SERVER_ERROR, FailureKind.TIMEOUT, FailureKind.UNREACHABLE})
_OF_A_KEY = frozenset({FailureKind.UNAUTHORIZED, FailureKind.QUOTA})
# The parts of a message that differ from job to job: what is quoted, numbers and what is written together with them
# (ids, dates, counts), ids of letters alone, and the names of days and months.
_PART_OF_A_WORD = r"[A-Za-z0-9_.:+/=,~%#-]"
_DETAILS = re.compile(
    r"`[^`]*`|'[^']*'|\"[^\"]*\""
    rf"|{_PART_OF_A_WORD}*[0-9]{_PART_OF_A_WORD}*"
    r"|[A-Za-z_+/=-]{20,}"
    r"|\b(?:mon|tue|tues|wed|wednes|thu|thurs|fri|sat|satur|sun)(?:day)?\b"
    r"|\b(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b",
    re.IGNORECASE | re.ASCII,
)
_SEVERAL_DETAILS = re.compile(r"…(?:[\s,;:()/-]*…)+")
# Words that also come while others are answered are the endpoint's state only if a run of them is this unlikely.
_ACCIDENT_OF_WORDS = 1e-6
_LONGEST_RUN_OF_WORDS = 200
MIXED_SHARE = 0.2  # refusals with at least this share are the jobs' own: others are answered beside them


def is_trouble(failure: Failure) -> bool:
    """Whether the failure is one that outages cause: a 5xx, a timeout, a reset, or an HTML page of a proxy.

    JSON without a completion does not count: a model may answer a single request so.
    """
    if is_local(failure):
        return False
    if failure.kind is FailureKind.BAD_RESPONSE:
        return failure.body is None or failure.body.lstrip()[:1] == b"<"
    return failure.kind in _TROUBLE


def is_refusal(failure: Failure) -> bool:
    """Whether the endpoint refused to serve: because of the request, the key or the quota."""
    return failure.kind is FailureKind.REJECTED or failure.kind in _OF_A_KEY


def is_about_the_request(failure: Failure) -> bool:
    """Whether the refusal is about the request itself, such as a field or its size. An HTML page comes from a proxy."""
    is_page = failure.body is not None and failure.body.lstrip()[:1] == b"<"
    return failure.kind is FailureKind.REJECTED and failure.http_status in _OF_THE_REQUEST and not is_page


def likeness(failure: Failure, model: str) -> str:
    """A text that is the same for two refusals of the same kind: kind, status, model, and message without details."""
    words = _SEVERAL_DETAILS.sub("…", _DETAILS.sub("…", failure.message))[:200]
    return f"{failure.kind.value} {failure.http_status} {model} {words}"


def refusals_of_an_endpoint(failure: Failure, share: float = 0.0) -> int:
    """How many different jobs must be refused alike, in a row, to show that it is the endpoint's state.

    `share`: the usual share of calls that are refused in these words while others are answered. Three or five where
    there are none; 20 where it is half of them, 132 where it is nine of ten, 200 at most.
    """
    fewest = _SAME_WORDS_FOR_REQUESTS if is_about_the_request(failure) else SEVERAL
    if share <= HEALTHY_RATE:
        return fewest
    longest = math.ceil(math.log(_ACCIDENT_OF_WORDS) / math.log(min(share, 0.99)))
    return max(fewest, min(_LONGEST_RUN_OF_WORDS, longest))


def is_outage(*, jobs: int, numbers: Sequence[int], calls: int, failure_rate: float) -> bool:
    """Whether a run of failures is an outage.

    `jobs`: how many different jobs failed in the run. `numbers`: the numbers of their calls. `calls`: how many calls
    there were in all. `failure_rate`: the endpoint's usual rate. In an outage nearly all calls fail that began after
    the middle call of the run; only the latest ones have not ended yet.
    """
    if jobs < SEVERAL or len(numbers) < shortest_outage(failure_rate):
        return False
    middle = sorted(numbers)[len(numbers) // 2]
    failed = len(numbers) - len(numbers) // 2
    return failed >= min(_LARGEST_PART, _PART + failure_rate) * (calls - middle + 1)


def shortest_outage(failure_rate: float) -> int:
    """How many failures in a row an outage needs at least: 3 at a healthy endpoint, 14 where half of the calls fail."""
    # The rate is learnt from a thousand answers at most, so the true one may be a little higher.
    margin = 2 * math.sqrt(failure_rate * (1 - failure_rate) / KNOWN_FROM)
    rate = min(max(failure_rate + margin if failure_rate > 0.1 else failure_rate, HEALTHY_RATE), 0.99)
    return max(SEVERAL, min(_LONGEST_RUN, math.ceil(math.log(_ACCIDENT) / math.log(rate))))
