"""How an outage of the endpoint is told from a job's own failure. Pure.

One failed call does not say whose fault it is. Several different jobs that fail alike in a row, with no success in
between, do: so many that it would be a rare accident at the rate at which this endpoint usually fails.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from schemas.failure import Failure, FailureKind
from worker.policy.gates import SEVERAL
from worker.policy.retry import is_local

HEALTHY_RATE = 0.05  # the least rate of failures that is assumed of any endpoint
# The rate is learnt from so many answers: more than are in flight at once, or one burst would set it.
KNOWN_FROM = 1000
_ACCIDENT = 2e-4
_LONGEST_RUN = 16
# Failed calls return before answered ones. So they must also be a larger share of the calls that began with them than
# this endpoint's usual failures explain.
_PART = 0.25
_LARGEST_PART = 0.7
_OF_THE_REQUEST = frozenset({400, 413, 415, 422})
_SAME_WORDS_FOR_REQUESTS = 5
_TROUBLE = frozenset({FailureKind.SERVER_ERROR, FailureKind.TIMEOUT, FailureKind.UNREACHABLE})
_OF_A_KEY = frozenset({FailureKind.UNAUTHORIZED, FailureKind.QUOTA})
_DETAILS = re.compile(r"\d+|[0-9a-f]{8,}|`[^`]*`|'[^']*'|\"[^\"]*\"", re.IGNORECASE)


def is_trouble(failure: Failure) -> bool:
    """Whether an endpoint that is down, or a proxy before it, fails like this: 5xx, silence, a reset, a page.

    JSON without a completion is no trouble of this kind: a model may answer one request so.
    """
    if is_local(failure):
        return False
    if failure.kind is FailureKind.BAD_RESPONSE:
        return failure.body is None or failure.body.lstrip()[:1] == b"<"
    return failure.kind in _TROUBLE


def is_refusal(failure: Failure) -> bool:
    """Whether the endpoint answered that it will not serve this request, for whatever reason."""
    return failure.kind is FailureKind.REJECTED or failure.kind in _OF_A_KEY


def is_about_the_request(failure: Failure) -> bool:
    """Whether the refusal is about one request: a field of it, its size. A page is a proxy's, whatever its status."""
    is_page = failure.body is not None and failure.body.lstrip()[:1] == b"<"
    return failure.kind is FailureKind.REJECTED and failure.http_status in _OF_THE_REQUEST and not is_page


def likeness(failure: Failure, model: str) -> str:
    """What two equal refusals have in common: kind, status, model, and the message without its details."""
    words = _DETAILS.sub("…", failure.message)[:200]
    return f"{failure.kind.value} {failure.http_status} {model} {words}"


def several(failure: Failure) -> int:
    """How many different jobs, refused in a row in the same words, show that it is the endpoint's state."""
    return _SAME_WORDS_FOR_REQUESTS if is_about_the_request(failure) else SEVERAL


def is_outage(*, jobs: int, numbers: Sequence[int], calls: int, failure_rate: float) -> bool:
    """Whether a run of failures is no accident.

    `jobs` different jobs failed in a row; `numbers` are those of their calls, out of `calls` in all; `failure_rate` is
    the endpoint's usual one. In an outage nearly every call fails that began since the middle one of these: only the
    latest have not ended yet.
    """
    if jobs < SEVERAL or len(numbers) < longest_accident(failure_rate):
        return False
    middle = sorted(numbers)[len(numbers) // 2]
    failed = len(numbers) - len(numbers) // 2
    return failed >= min(_LARGEST_PART, _PART + failure_rate) * (calls - middle + 1)


def longest_accident(failure_rate: float) -> int:
    """How many failures in a row are no accident any more: 3 at a healthy endpoint, 14 where half of the calls fail."""
    # The rate comes from a thousand answers at most: the true one may be a little higher.
    margin = 2 * math.sqrt(failure_rate * (1 - failure_rate) / KNOWN_FROM)
    rate = min(max(failure_rate + margin if failure_rate > 0.1 else failure_rate, HEALTHY_RATE), 0.99)
    return max(SEVERAL, min(_LONGEST_RUN, math.ceil(math.log(_ACCIDENT) / math.log(rate))))
