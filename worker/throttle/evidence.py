"""What a process remembers of its calls. It decides by this whether a failure is the endpoint's or the job's own."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from schemas.failure import Failure, FailureKind
from worker.policy.gates import Gate
from worker.policy.outages import (
    KNOWN_FROM,
    MIXED_SHARE,
    is_about_the_request,
    is_refusal,
    is_trouble,
    likeness,
    refusals_of_an_endpoint,
)
from worker.policy.retry import Attribution
from worker.throttle.trouble import Suspicion, Trouble

_MOST_HISTORIES = 4096
_MOST_KEYS = 256
_MOST_UNDECIDED = 5  # waits of 1 + 2 + 4 + 8 + 8 s: without another job's answer the job then fails
_MOST_LAST_CHANCES = 3
_MOST_DOUBTS = 3  # waits of 1 + 2 + 4 s: an outage is known by then, unless it is one or two jobs that fail
_OWN_AFTER = 3  # refusals of one job, and of no other, with a key that worked a moment ago
_OWN_AFTER_S = 6.0
_A_MOMENT_AGO_S = 60.0
_OWN_FOR_S = 600.0
_MIXED_FROM = 2
_SERVING_S = 5.0


@dataclass(slots=True)
class _History:
    """The failures of one job for which it is not decided yet whether they are its own."""

    order: int  # of its latest failure, in the count of all events of this process
    count: int = 0  # failures so far
    again: int = 0  # those of them that came after another job was answered
    chances: int = 0  # how often its last attempt failed and was not burnt


@dataclass(slots=True)
class _Words:
    """Refusals in the same words, and the answers of the same model beside them."""

    answers: int  # of the model, at the latest refusal
    waiting: int = 0  # refusals since then, after which no job was answered yet
    refused: float = 0.0  # refusals after which others were answered
    answered: float = 0.0
    turns: int = 0  # how often refusals were followed by answers and came again

    def note_refusal(self, answers: int) -> None:
        """One more refusal, when the model has given so many answers."""
        if answers > self.answers:
            self.refused += self.waiting
            self.answered += answers - self.answers
            self.waiting = 0
            self.turns += 1
            if self.refused + self.answered > KNOWN_FROM:
                self.refused /= 2
                self.answered /= 2
        self.waiting += 1
        self.answers = answers

    @property
    def share(self) -> float:
        """The share of calls that are refused in these words while others are answered.

        0 where that happened at most once, as it does after an outage.
        """
        return self.refused / (self.refused + self.answered) if self.turns >= _MIXED_FROM else 0.0


@dataclass(slots=True)
class _Model:
    """What is known of a model that refused a job."""

    since: int  # the order of the first refusal; a call from before it proves nothing of the time after it
    answers: int = 0  # to calls that began since then


@dataclass(frozen=True, slots=True)
class Verdict:
    """To whom a failure is attributed. `asked`: how often the decision was put off for this job before."""

    attribution: Attribution
    asked: int = 0


class Evidence:
    """One per process. Thread-safe. Times are this process's monotonic seconds: no two clocks are compared.

    `began` and `order` are numbers from one counter, which counts the starts of calls and the failures: the smaller one
    came first. `number` is a call's number among the calls only; `calls` is how many calls there were so far.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._trouble = Trouble()
        self._refusals: dict[str, dict[str, None]] = {}  # jobs that were refused since then, by likeness
        self._words: OrderedDict[str, _Words] = OrderedDict()  # by likeness
        self._models: OrderedDict[str, _Model] = OrderedDict()
        # Refusals that were a job's own: likeness to (model, time).
        self._own: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._histories: OrderedDict[str, _History] = OrderedDict()
        self._succeeded_s = float("-inf")
        self._latest_began = 0  # the `began` of the latest call that succeeded

    @property
    def failure_rate(self) -> float:
        """The usual share of calls that fail like an outage although there is none, over about the last 1,000 calls."""
        return self._trouble.rate

    def succeeded(
        self, job_id: str, model: str, *, began: int, now_s: float, number: int | None = None
    ) -> None:
        """Records that a call was answered. The endpoint was serving when that call began.

        `number`: the call's number. In an outage, calls that began before it may still be answered for minutes.
        """
        with self._lock:
            self._trouble.note_answer(number)
            self._succeeded_s = now_s
            self._latest_began = max(self._latest_began, began)
            if self._refusals:
                self._refusals.clear()
            if self._models and (known := self._models.get(model)) is not None and began > known.since:
                known.answers += 1
            if self._own:
                for key in [key for key, (of_model, _) in self._own.items() if of_model == model]:
                    del self._own[key]
            if self._histories:
                self._histories.pop(job_id, None)

    def reopened(self, served_s: float) -> None:
        """Records that a probe opened the gate: the endpoint was serving at `served_s`. See `Trouble.reopened`."""
        with self._lock:
            self._trouble.reopened(served_s)
            self._refusals.clear()

    def judge(
        self,
        job_id: str,
        model: str,
        failure: Failure,
        *,
        gate: Gate | None,
        is_probe: bool,
        is_proven: bool,
        is_last: bool,
        is_only: bool,
        has_others: Callable[[], bool],
        number: int,
        calls: int,
        order: int,
        now_s: float,
        in_flight: int = 1,
        tries: int = 1,
        waited_s: float = 0.0,
        was_accepted: Callable[[], bool] = lambda: False,
    ) -> Verdict:
        """To whom this failure is attributed. `gate` is as it stands now.

        `is_last`: this is the last attempt of the job's budget. `is_only`: the producer asked for one attempt only, so
        the job does not wait for a decision. `has_others`: whether another job could be called to decide; it is called
        only if needed. So is `was_accepted`: whether a command found the key accepted a moment ago.
        `in_flight`: the calls in flight when it failed, itself among them. The job was tried `tries` times, by any
        worker, and has waited at gates for `waited_s`.
        """
        if is_trouble(failure):
            if is_only and failure.was_sent:
                return Verdict(Attribution.UNKNOWN)
            verdict = self._judge_trouble(
                job_id,
                gate,
                is_probe=is_probe,
                is_last=is_last and failure.was_sent,
                number=number,
                calls=calls,
                order=order,
                now_s=now_s,
                in_flight=in_flight,
            )
            return verdict if failure.was_sent else self._judge_unsent(verdict, job_id, now_s)
        if is_refusal(failure):
            with self._lock:
                verdict = self._judge_refusal(
                    job_id, model, failure, gate, is_proven=is_proven, order=order, now_s=now_s
                )
            if verdict.attribution is Attribution.UNDECIDED and verdict.asked == 0 and not has_others():
                return Verdict(Attribution.UNKNOWN)
            if (
                failure.kind in (FailureKind.UNAUTHORIZED, FailureKind.QUOTA)
                and verdict.attribution is Attribution.UNKNOWN
            ):
                is_known = tries >= _OWN_AFTER and waited_s >= _OWN_AFTER_S
                if (
                    is_known
                    and (gate is None or set(gate.jobs) <= {job_id})
                    and (self._has_worked_since(now_s - waited_s) or was_accepted())
                    and not has_others()
                ):
                    return Verdict(Attribution.JOB)
            return verdict
        return Verdict(Attribution.UNKNOWN)

    def _judge_trouble(
        self,
        job_id: str,
        gate: Gate | None,
        *,
        is_probe: bool,
        is_last: bool,
        number: int,
        calls: int,
        order: int,
        now_s: float,
        in_flight: int,
    ) -> Verdict:
        with self._lock:
            is_outage_known = gate is not None and gate.is_outage
            history, was_served = self._note_failure(job_id, order)
            if is_outage_known:
                del self._histories[job_id]
                if not is_probe:
                    self._trouble.note_failure(number)
                return Verdict(Attribution.ENDPOINT)
            self._trouble.note_failure(number)
            history.again += was_served
            # If other jobs were answered between its failures, these may be its own, and do not count as an outage.
            if not history.again:
                self._trouble.add(job_id, number, in_flight=in_flight)
            suspicion = self._trouble.suspect(
                calls=calls, is_known=self._succeeded_s > float("-inf"), now_s=now_s
            )
            if suspicion is Suspicion.OUTAGE:
                for one in self._trouble.jobs:
                    self._histories.pop(one, None)
                return Verdict(Attribution.ENDPOINT)
            if suspicion is Suspicion.OPEN and history.count <= _MOST_DOUBTS:
                return Verdict(Attribution.UNDECIDED, history.count - 1)
            if is_last and self._trouble.jobs.keys() - {job_id} and history.chances < _MOST_LAST_CHANCES:
                # Other jobs fail, too: the last attempt is not burnt before it is known whose failure this is.
                history.chances += 1
                return Verdict(Attribution.UNDECIDED, history.chances - 1)
            return Verdict(Attribution.UNKNOWN)

    def _judge_unsent(self, verdict: Verdict, job_id: str, now_s: float) -> Verdict:
        """The verdict on a call whose connection was not made. It burns no attempt in any case.

        It shuts the gate at once, unless others were answered just now: one backend of several may refuse.
        """
        if verdict.attribution is Attribution.ENDPOINT:
            return verdict
        if now_s - self._succeeded_s >= _SERVING_S:
            return Verdict(Attribution.UNKNOWN)
        with self._lock:
            history = self._histories.get(job_id)
            return Verdict(Attribution.UNDECIDED, 0 if history is None else history.count - 1)

    def _judge_refusal(
        self,
        job_id: str,
        model: str,
        failure: Failure,
        gate: Gate | None,
        *,
        is_proven: bool,
        order: int,
        now_s: float,
    ) -> Verdict:
        is_of_a_key = failure.kind is not FailureKind.REJECTED
        if not is_of_a_key and gate is not None and gate.is_outage and not is_about_the_request(failure):
            self._note_failure(job_id, order)
            return Verdict(Attribution.ENDPOINT)
        key = likeness(failure, model)
        run = self._refusals.setdefault(key, {})
        if len(self._refusals) > _MOST_KEYS:
            self._refusals = {key: run}
        others = len(run) - (job_id in run)
        share = 0.0 if is_of_a_key else self._note_words(key, model, order)
        is_mixed = share >= MIXED_SHARE
        history, was_served = self._note_failure(job_id, order)
        history.again += was_served
        run[job_id] = None
        if history.again and (not others or history.again > 1 or is_of_a_key or is_mixed):
            # Other jobs were answered since this one was refused, and it is refused again.
            self._own[key] = (model, now_s)
            if len(self._own) > _MOST_KEYS:
                self._own.popitem(last=False)
            return Verdict(Attribution.JOB)
        is_known_own = key in self._own and now_s - self._own[key][1] < _OWN_FOR_S
        if is_known_own and not is_of_a_key:
            return Verdict(Attribution.JOB)
        if len(run) >= refusals_of_an_endpoint(failure, share):
            return Verdict(Attribution.ENDPOINT)
        if is_of_a_key:
            return (
                Verdict(Attribution.UNDECIDED, history.count - 1)
                if is_known_own
                else Verdict(Attribution.UNKNOWN)
            )
        if not is_proven or (is_about_the_request(failure) and (not others or is_mixed)):
            return Verdict(Attribution.UNKNOWN)
        if history.count > _MOST_UNDECIDED:
            return Verdict(Attribution.JOB)
        return Verdict(Attribution.UNDECIDED, history.count - 1)

    def _note_words(self, key: str, model: str, order: int) -> float:
        """One more refusal in these words; their usual share among the calls that end while others are answered."""
        known = self._models.get(model)
        if known is None:
            known = self._models[model] = _Model(order)
            if len(self._models) > _MOST_KEYS:
                self._models.popitem(last=False)
        words = self._words.pop(key, None) or _Words(known.answers)
        self._words[key] = words
        if len(self._words) > _MOST_KEYS:
            self._words.popitem(last=False)
        words.note_refusal(known.answers)
        return words.share

    def _has_worked_since(self, since_s: float) -> bool:
        """Whether the key worked at most a moment before `since_s`, or later."""
        with self._lock:
            return self._succeeded_s >= since_s - _A_MOMENT_AGO_S

    def _note_failure(self, job_id: str, order: int) -> tuple[_History, bool]:
        """The job's history with this failure added, and whether other jobs were answered since its last failure."""
        history = self._histories.pop(job_id, None)
        was_served = history is not None and self._latest_began > history.order
        if history is None:
            history = _History(order)
            if len(self._histories) >= _MOST_HISTORIES:
                self._histories.popitem(last=False)
        history.order = order
        history.count += 1
        self._histories[job_id] = history
        return history, was_served
