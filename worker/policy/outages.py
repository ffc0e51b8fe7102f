"""Distinguishes an outage of the endpoint from a job's own failure. Pure.

One failed call does not say whose fault it is. Failures of different jobs are an outage if there is a window, of the
calls that ended last, in which more than four of five failed, and so many that it would be very unlikely at the
endpoint's usual rate of failures. The window has no fixed length: three calls are enough at an endpoint that hardly
ever fails, and it takes in a thousand where some calls are answered in between. Where several calls are in flight,
more of them are asked, because the endpoint may have become flaky just now.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from schemas.failure import Failure, FailureKind
from worker.policy.gates import SEVERAL
from worker.policy.retry import is_local

HEALTHY_RATE = 0.01  # the lowest rate of failures that is assumed of any endpoint
_RARE_WORDS = 0.05  # a share of calls refused in the same words that says nothing
# The rate is learnt from this many answers. They must be more than the calls in flight, or one burst would decide it.
KNOWN_FROM = 1000
_ACCIDENT = 1e-6
MOST_FAILURES = 20
LATELY = 20  # calls that tell the recent rate: few, so that an endpoint is known to be flaky soon
_FLAKIEST = 0.5  # the highest usual rate: jobs do not wait for an endpoint that fails in more of its calls
_FLAKY = 0.3  # an endpoint that was healthy may fail so often from one moment on
_ACCIDENT_OF_THE_FLAKY = 1e-4  # eight in a row of 30 %
ANSWER_WEIGHT = 4  # an answer makes up for so many failures: a window has to have more than four of five
# Failed calls often return before answered ones, which makes runs of failures longer. So the failed calls must also be
# a larger share of the calls that began at the same time than the endpoint's usual rate explains.
_PART = 0.25
_LARGEST_PART = 0.7
_FIRST_PART = 0.8
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
    if share <= _RARE_WORDS:
        return fewest
    longest = math.ceil(math.log(_ACCIDENT_OF_WORDS) / math.log(min(share, 0.99)))
    return max(fewest, min(_LONGEST_RUN_OF_WORDS, longest))


def count_excess(excess: int, *, failures: int = 0, answers: int = 0) -> int:
    """The failures beyond four for each answer, in the window in which these are the most: never below 0.

    It takes one number, and no list of calls: the window begins anew where answers have made up for all failures in it.
    """
    return max(0, excess - ANSWER_WEIGHT * answers) + failures


def is_outage(
    *, jobs: int, excess: int, numbers: Sequence[int], calls: int, failure_rate: float, is_known: bool = True
) -> bool:
    """Whether the failures of a window are an outage.

    `jobs`: how many different jobs failed in it. `excess`: as of `count_excess`. `numbers`: the numbers of the failed
    calls, in order. `calls`: how many calls there were in all. `failure_rate`: the endpoint's usual rate. `is_known`
    False: no call was answered yet, so the rate is a guess.
    """
    if jobs < SEVERAL or not numbers or excess < shortest_outage(failure_rate):
        return False
    failed, first = len(numbers), numbers[0]
    if not _is_unlikely(failed, calls - first + 1, _highest_rate(failure_rate)):
        return False
    if not is_known and failed < _FIRST_PART * (numbers[-1] - first + 1):
        return False  # of a first wave of calls, the failures come back before all answers
    # Nearly all calls fail that began after the middle one of these; only the latest ones have not ended yet.
    middle = numbers[failed // 2]
    return failed - failed // 2 >= min(_LARGEST_PART, _PART + failure_rate) * (calls - middle + 1)


def is_certain(*, excess: int, numbers: Sequence[int], recent_rate: float, in_flight: float) -> bool:
    """Whether what looks like an outage is not an endpoint that has become flaky just now.

    Its usual rate is not known yet then. So the failures, or the latest half of them, or a quarter and so on, have to
    be unlikely also at an endpoint that fails in 30 % of its calls. But no more is asked than that all of the
    `in_flight` calls at once fail: with few of them an outage would be noticed late. `recent_rate`: the share of the
    latest calls that failed while others were answered. It counts up to 30 %: one that fails in most is no better.
    """
    if excess < shortest_outage(min(recent_rate, _FLAKY)):
        return False
    asked = min(-math.log(_ACCIDENT_OF_THE_FLAKY), -in_flight * math.log(_FLAKY)) - 1e-9
    failed = len(numbers)
    while failed >= SEVERAL:
        if _surprise(failed, numbers[-1] - numbers[-failed] + 1, _FLAKY) >= asked:
            return True
        failed //= 2
    return False


def is_doubtful(
    *,
    jobs: int,
    excess: int,
    numbers: Sequence[int],
    failure_rate: float,
    recent_rate: float,
    in_flight: float,
) -> bool:
    """Whether one more failure in a row would look like an outage, and more would be needed to be certain of it."""
    shortest = shortest_outage(failure_rate)
    latest = numbers[1 - shortest :]
    asks_more = in_flight > SEVERAL or shortest_outage(recent_rate) > shortest
    if not asks_more or jobs < SEVERAL - 1 or min(excess, len(latest)) < shortest - 1:
        return False
    return len(latest) >= _FIRST_PART * (latest[-1] - latest[0] + 1)


def shortest_outage(failure_rate: float) -> int:
    """How many failures in a row are an outage: 3 at a healthy endpoint, 13 where 30 % of calls fail, 20 at most."""
    rate = min(max(_highest_rate(failure_rate), HEALTHY_RATE), 0.99)
    return max(SEVERAL, min(MOST_FAILURES, math.ceil(math.log(_ACCIDENT) / math.log(rate))))


def _highest_rate(failure_rate: float) -> float:
    """What the usual rate may be. It is learnt from a thousand answers at most, so it may be a little higher."""
    margin = 2 * math.sqrt(failure_rate * (1 - failure_rate) / KNOWN_FROM)
    return max(HEALTHY_RATE, failure_rate + margin if failure_rate > 0.1 else failure_rate)


def _is_unlikely(failed: int, begun: int, rate: float) -> bool:
    """Whether it is no accident that so many fail of all calls that began since the first of them."""
    return _surprise(failed, begun, min(rate, _FLAKIEST)) >= -math.log(_ACCIDENT) - 1e-9


def _surprise(failed: int, begun: int, rate: float) -> float:
    """How unlikely so many failures are at this rate: -ln of Chernoff's bound. 0: they are no more than usual."""
    share = min(1.0, failed / max(1, begun))
    if share <= rate:
        return 0.0
    distance = share * math.log(share / rate)
    if share < 1:
        distance += (1 - share) * math.log((1 - share) / (1 - rate))
    return begun * distance
