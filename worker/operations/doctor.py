"""The doctor: what is wrong with the ledger, the spool, the workers and the broker, and its repair.

`examine` changes nothing. `mend` does what is safe beside running workers: no result is lost by it, and no job is
called that a worker works on. What it cannot mend stays a finding, for a person.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

from worker.broker.client import BrokerEpoch, broker_address, count_messages, open_client
from worker.broker.hints import SHARED_QUEUES, queues_of
from worker.broker.set_aside import count_aside, name_aside
from worker.clock import SystemClock
from worker.errors import BrokerAway
from worker.files.home import broker_socket
from worker.operations.endpoint_choice import drop_served
from worker.settings import Settings
from worker.storage.doctor import (
    MOST_EXAMPLES,
    AuditTime,
    Finding,
    UnendedWorker,
    check_file,
    count_all_published,
    fetch_live_endpoints,
    fetch_published_endpoints,
    fetch_unended_workers,
    find_defects,
    mend_defects,
    rescue_worker,
)
from worker.storage.engine import Ledger
from worker.storage.errors import UNSTORABLE
from worker.storage.identity import fetch_identity
from worker.storage.migrating import fetch_newer_revision, is_current, migrate
from worker.storage.open_models import count_open_models
from worker.storage.outcomes import Recorded, Success
from worker.storage.transitions import record_outcomes
from worker.storage.workers import is_of_this_ledger
from worker.upkeep.presence import forget, has_died, is_alive
from worker.upkeep.spool import (
    REJECTED,
    Unstorable,
    count_rejected,
    find_leftovers,
    holds_answers,
    replay_leftovers,
)

_OVERDUE_FACTOR = 3  # a relay publishes again what was published once this long ago; so none is at work
_MOST_UNEXPLAINED = 1_000


@dataclass(slots=True)
class Examination:
    """What was found at one time.

    `dead` are workers that are known to have died. `messages` is how many lie in the broker, None where it was not
    asked or is away; `published` is how many jobs the ledger has handed to it.
    """

    findings: list[Finding] = field(default_factory=list)
    dead: list[UnendedWorker] = field(default_factory=list)
    messages: int | None = None
    published: int = 0

    @property
    def is_repairable(self) -> bool:
        """Whether `mend` can do something about any of the findings."""
        return any(one.is_repairable for one in self.findings)


def examine(ledger: Ledger, settings: Settings) -> Examination:
    """Examines all of it; changes nothing. Raises DatabaseAway."""
    found = Examination()
    damage = check_file(ledger)
    if damage is not None:
        found.findings.append(damage)
        return found
    newer = fetch_newer_revision(ledger)
    if newer is not None:
        found.findings.append(Finding("newer_schema", 1, (newer,)))
        return found
    if not is_current(ledger):
        found.findings.append(Finding("schema", 1, (), is_repairable=True))
        return found
    at = _audit_time(settings)
    found.findings += _check_spool(settings)
    _check_workers(ledger, settings, at, found)
    found.findings += find_defects(ledger, at)
    found.findings += _check_models(ledger, settings)
    _check_broker(ledger, settings, at, found)
    return found


def mend(ledger: Ledger, settings: Settings, found: Examination) -> Examination:
    """Does what is safe about all that was `found`, and examines again. Raises DatabaseAway."""
    if any(one.name == "schema" for one in found.findings):
        migrate(ledger)
        found = examine(ledger, settings)
    after = _mend_once(ledger, settings, found)
    known = {one.name for one in found.findings}
    if any(one.is_repairable and one.name not in known for one in after.findings):
        after = _mend_once(ledger, settings, after)  # one repair may uncover the next
    return after


def _mend_once(ledger: Ledger, settings: Settings, found: Examination) -> Examination:
    # Paid answers are recorded before a worker is taken for dead, as a worker's heartbeat does it. Then the rows are
    # set right: a rescue needs whole claims, and must not queue a job whose result is there.
    if found.dead or any(one.name == "stray_spool" for one in found.findings):
        replay_leftovers(
            settings.spool_folder, partial(_record_spooled, ledger), is_ours=partial(_is_ours, ledger)
        )
    mend_defects(ledger, _audit_time(settings), [one.name for one in found.findings])
    folder, now_ms = settings.home / "workers", SystemClock().now_ms()
    for worker in found.dead:
        if not has_died(folder, worker.worker_id):
            continue  # a worker has rescued it meanwhile
        if holds_answers(settings.spool_folder, worker.worker_id):
            continue  # a worker is recording it, or it cannot be read: the finding stays
        rescue_worker(ledger, worker, max_solo_losses=settings.max_solo_losses, now_ms=now_ms)
        forget(folder, worker.worker_id)
    return examine(ledger, settings)


def _audit_time(settings: Settings) -> AuditTime:
    now_ms = SystemClock().now_ms()
    return AuditTime(now_ms, now_ms - round(_OVERDUE_FACTOR * settings.republish_after_s * 1000))


def _check_spool(settings: Settings) -> list[Finding]:
    folder = settings.spool_folder
    try:
        left, rejected = find_leftovers(folder), count_rejected(folder)
    except OSError:
        return [Finding("spool_unreadable", 1, (str(folder),))]
    found = []
    if left:
        found.append(
            Finding("stray_spool", sum(left.values()), tuple(left)[:MOST_EXAMPLES], is_repairable=True)
        )
    if rejected:
        found.append(Finding("rejected_answers", rejected, (str(folder / REJECTED),)))
    return found


def _check_workers(ledger: Ledger, settings: Settings, at: AuditTime, found: Examination) -> None:
    with ledger.read() as connection:
        unended = fetch_unended_workers(connection, now_ms=at.now_ms)
    folder = settings.home / "workers"
    # Only a lock that is free is certain. Others that seem gone are left to a worker, which watches them for a lease.
    found.dead = [one for one in unended if has_died(folder, one.worker_id)]
    stalled = [
        one
        for one in unended
        if one.is_stalled and one not in found.dead and not is_alive(folder, one.worker_id)
    ]
    for name, some in (("dead_worker", found.dead), ("silent_worker", stalled)):
        if some:
            ids = tuple(one.worker_id for one in some[:MOST_EXAMPLES])
            found.findings.append(Finding(name, len(some), ids, is_repairable=some is found.dead))


def _check_models(ledger: Ledger, settings: Settings) -> list[Finding]:
    """Jobs whose model no table of these settings has: no worker with the same tables ever calls them."""
    if not settings.endpoint_tables:
        return []
    with ledger.read() as connection:
        models = count_open_models(connection, settings.endpoint)
    unserved = drop_served(models, settings.endpoint_tables)
    most = sorted(unserved, key=lambda model: (-unserved[model], model))[:MOST_EXAMPLES]
    return [Finding("unserved_model", sum(unserved.values()), tuple(most))] if unserved else []


def _check_broker(ledger: Ledger, settings: Settings, at: AuditTime, found: Examination) -> None:
    with ledger.read() as connection:
        served = fetch_live_endpoints(connection, now_ms=at.now_ms)
        found.published = count_all_published(connection)
        ledger_id, endpoints = fetch_identity(connection), {*served, *fetch_published_endpoints(connection)}
    if settings.is_broker_embedded and not served and not broker_socket(settings.home).exists():
        return  # it comes with the first command that needs it
    client = open_client(broker_address(settings))
    try:
        own = [name for endpoint in endpoints for name in queues_of(ledger_id, endpoint).names]
        queues = (*SHARED_QUEUES.names, *own)
        found.messages = count_messages(client, queues)
        aside = count_aside(client, queues)
        tasks = [name_aside(client, key) for key in aside]
        forgot = [endpoint for endpoint in served if not BrokerEpoch(client, endpoint).is_present()]
    except BrokerAway:
        found.findings.append(Finding("broker_away", 1, ()))
        return
    finally:
        client.close()
    if aside:
        names = sorted({name for name in tasks if name is not None})
        found.findings.append(Finding("set_aside", sum(aside.values()), tuple(names[:MOST_EXAMPLES])))
    if forgot and found.published:
        found.findings.append(Finding("broker_forgot", len(forgot), tuple(forgot[:MOST_EXAMPLES])))
    if found.messages > 2 * found.published + _MOST_UNEXPLAINED:
        found.findings.append(Finding("crowded_broker", found.messages, ()))


def _is_ours(ledger: Ledger, worker_id: str, claims: Iterable[tuple[str, str]]) -> bool:
    with ledger.read() as connection:
        return is_of_this_ledger(connection, worker_id, claims)


def _record_spooled(ledger: Ledger, success: Success) -> None:
    try:
        [recorded] = ledger.run(partial(record_outcomes, outcomes=[success]))
    except UNSTORABLE as exc:
        raise Unstorable from exc  # as a worker does: one line must not keep the others
    if recorded is Recorded.CLAIM_LOST:
        raise Unstorable  # no such job: pruned, or this spool is of another ledger
