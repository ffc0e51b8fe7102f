"""What each of the doctor's findings means, and what to do about it: a sentence a name."""

from __future__ import annotations

MEANINGS: dict[str, str] = {
    "schema": "The database is not at this version's schema: --repair, or `antrean migrate`, brings it there.",
    "newer_schema": "The database is at a revision of a newer antrean: upgrade this one; nothing else was checked.",
    "damaged_file": (
        "SQLite finds its file damaged: stop all workers, restore a backup, and look at the disk; "
        "nothing else was checked."
    ),
    "stray_spool": (
        "Paid answers lie in the spool of processes that are dead: --repair, or the next worker of this home, "
        "records them. What stays after that is of another ledger of this home, for whose worker it waits."
    ),
    "spool_unreadable": (
        "The spool cannot be read, and may hold paid answers; the jobs of a dead worker wait for its file: give this "
        "user the right to the folder and the files."
    ),
    "rejected_answers": (
        "Paid answers that no ledger could store, or this version could not read, lie in this file: keep it, look what "
        "is in it, and move it away."
    ),
    "dead_worker": (
        "A worker of this home is dead for certain, and not marked as such or holds jobs still: --repair, or any live "
        "worker, takes its jobs over, once what lies in its spool is recorded."
    ),
    "silent_worker": (
        "A worker of another machine or home has been silent for more than ten leases, or has ended or lost its row "
        "and holds jobs still: any live worker takes its jobs over after a lease; if it works, a clock is wrong."
    ),
    "unknown_state": (
        "The state of a job is none of this version: a newer antrean, or somebody's own SQL, wrote it; upgrade, or "
        "set it right by hand."
    ),
    "half_a_claim": (
        "A job runs without a token, so nobody can end it, or without a worker, so nobody rescues it: --repair queues "
        "it again, or puts the worker back that its token names."
    ),
    "claim_left_over": "A job that is not running still carries a claim: --repair takes it away.",
    "claims_behind_attempts": (
        "A job counts fewer claims than it has attempts, so that the next would overwrite one: --repair raises "
        "the count."
    ),
    "result_without_success": (
        "A job has its result and is not succeeded: --repair makes it succeeded, since the result is paid for."
    ),
    "success_without_result": (
        "A job succeeded and its result is not there: restore it from a backup, or submit the request again "
        "under another idempotency key."
    ),
    "result_without_usage": (
        "A result's tokens are not counted: --repair counts them from the stored answer, as zero where it does "
        "not tell."
    ),
    "usage_without_result": (
        "Tokens are counted as used that no result stands behind: --repair keeps them as paid for and not used."
    ),
    "request_missing": (
        "A job has lost its request and can never be called: --repair fails it as invalid_request; submit it again."
    ),
    "ended_without_time": "A job has ended and does not say when: --repair dates it from its last attempt.",
    "open_with_end": "A job is open and says when it ended: --repair takes that away.",
    "waiting_without_time": "A job waits for no time at all, so no relay finds it: --repair makes it due now.",
    "waiting_for_long": (
        "A job waits for a time more than thirty days away: if nobody meant it, cancel it and submit it again."
    ),
    "left_behind": (
        "A job waits for a run that was stopped, although another that goes on wants it too: --repair, or that run "
        "itself within seconds, sees to it."
    ),
    "published_long_ago": (
        "A job was handed to the broker long ago, or by a clock that was far ahead, and no worker claimed it: --repair "
        "has it published again."
    ),
    "stray_rows": (
        "Rows belong to jobs that are not there, as after somebody's own DELETE or half a restore: nothing reads "
        "them; restore the jobs, or remove the rows by hand."
    ),
    "unserved": (
        "Jobs wait to be done and no live worker serves their endpoint: start one with the ANTREAN_BASE_URL, or "
        "the ANTREAN_ENDPOINT_NAME, that is named here."
    ),
    "interrupted_submission": (
        "A batch was never written down to its end: repeat the same `antrean submit` or `run`; what is there "
        "already is not written twice."
    ),
    "held_batch": (
        "A run was stopped and its jobs are held: type the same `antrean run` again to go on, or "
        "`antrean cancel BATCH` to give it up."
    ),
    "broker_away": (
        "The broker does not answer, so that no job starts: bring it back; nothing is lost, and all hints are "
        "published again."
    ),
    "broker_forgot": (
        "The broker has lost our mark, and so its hints: a live worker publishes them again within seconds; if "
        "this stays, look at its log."
    ),
    "set_aside": (
        "Tasks of another app on this broker lay on a queue that antrean's workers read; they are kept, beside their "
        "queue: give antrean a broker or a database number of its own (or the other app a queue), then "
        "`antrean give-back` puts them back."
    ),
    "crowded_broker": (
        "Far more messages lie in the broker than jobs are published: workers do not take them, or messages of "
        "other producers wait; look whether workers run."
    ),
}
