"""What each of the doctor's findings means, and what to do about it: one text for each name."""

from __future__ import annotations

MEANINGS: dict[str, str] = {
    "schema": "The database is not at this version's schema: --repair, or `antrean migrate`, migrates it.",
    "newer_schema": (
        "The database is at a revision of a newer antrean: upgrade this one. Nothing else was checked."
    ),
    "damaged_file": (
        "SQLite reports that its file is damaged: stop all workers, restore a backup, and check the disk. "
        "Nothing else was checked."
    ),
    "stray_spool": (
        "The spool has paid answers of processes that are dead: --repair, or the next worker of this home, "
        "records them. What stays after that belongs to another ledger of this home, and waits for a worker "
        "of it."
    ),
    "spool_unreadable": (
        "The spool cannot be read, and may have paid answers. The jobs of a dead worker wait until its file "
        "is read: give this user the right to read the folder and the files."
    ),
    "rejected_answers": (
        "This file has paid answers that no ledger could store, or that this version could not read: keep it,"
        " look what is in it, and move it away."
    ),
    "dead_worker": (
        "A worker of this home has certainly died, but is not marked as dead, or still has jobs: --repair, or"
        " any live worker, takes its jobs over, once its spool is recorded."
    ),
    "silent_worker": (
        "A worker of another machine or home was silent for more than ten leases, or has ended or lost its "
        "row and still has jobs: any live worker takes its jobs over after a lease. If this worker works, a "
        "clock is wrong."
    ),
    "unknown_state": (
        "This version does not know the state of a job. A newer antrean or manual SQL wrote it: upgrade, or "
        "correct it by hand."
    ),
    "half_a_claim": (
        "A job runs without a token, so that no worker can end it, or without a worker, so that no worker "
        "rescues it: --repair queues it again, or restores the worker that its token names."
    ),
    "claim_left_over": "A job that is not running still has a claim: --repair removes it.",
    "claims_behind_attempts": (
        "A job counts fewer claims than it has attempts, so that the next attempt would overwrite one: "
        "--repair raises the count."
    ),
    "result_without_success": (
        "A job has its result and is not succeeded: --repair makes it succeeded, because the result is paid "
        "for."
    ),
    "success_without_result": (
        "A job is succeeded and has no result: restore it from a backup, or submit the request again with "
        "another idempotency key."
    ),
    "result_without_usage": (
        "The tokens of a result are not counted: --repair counts them from the stored answer, as zero if it "
        "does not report them."
    ),
    "usage_without_result": (
        "Tokens are counted as used, but there is no result for them: --repair counts them as paid for and "
        "not used."
    ),
    "request_missing": (
        "A job has no request and can never be called: --repair fails it as invalid_request. Then submit it "
        "again."
    ),
    "ended_without_time": (
        "A job has ended, but the time of its end is missing: --repair takes the end of its last attempt."
    ),
    "open_with_end": "A job is open, but has the time of an end: --repair removes it.",
    "waiting_without_time": (
        "A job waits, but the time when it is due is missing, so no relay finds it: --repair makes it due "
        "now."
    ),
    "waiting_for_long": (
        "A job is due in more than thirty days: if that is a mistake, cancel it and submit it again."
    ),
    "left_behind": (
        "A job waits for a run that was stopped, although another batch that goes on wants it, too: --repair,"
        " or that batch's run within seconds, lets it go on."
    ),
    "published_long_ago": (
        "A job was published long ago, or by a clock that was far ahead, and no worker claimed it: --repair "
        "has it published again."
    ),
    "stray_rows": (
        "Some rows belong to jobs that do not exist, for example after a manual DELETE or an incomplete "
        "restore. They are never read: restore the jobs, or remove the rows by hand."
    ),
    "unserved": (
        "Jobs are open and no live worker serves their endpoint: start one with the ANTREAN_BASE_URL, or the "
        "ANTREAN_ENDPOINT_NAME, that is named here."
    ),
    "unserved_model": (
        "Jobs are open whose model no table of endpoints serves: add it to the `models` of one in antrean.toml and "
        "start the workers again, or cancel the jobs."
    ),
    "interrupted_submission": (
        "The submission of a batch did not finish: repeat the same `antrean submit` or `run`. Jobs that are "
        "in the ledger already are not written twice."
    ),
    "held_batch": (
        "A run was stopped and its jobs are held: call the same `antrean run` again to go on, or `antrean "
        "cancel BATCH` to cancel them."
    ),
    "broker_away": (
        "The broker does not answer, so no job starts: start it again. Nothing is lost, and all hints are "
        "published again."
    ),
    "broker_forgot": (
        "The broker has lost its data, and so its hints: a live worker publishes them again within seconds. "
        "If this stays, look at its log."
    ),
    "set_aside": (
        "Messages of another app on this broker were on a queue that antrean's workers read. They are kept, "
        "beside their queue: give antrean its own broker or database number (or the other app its own queue),"
        " then `antrean give-back` puts them back."
    ),
    "crowded_broker": (
        "The broker has far more messages than there are published jobs: workers do not take them, or "
        "messages of other producers wait. Check whether workers run."
    ),
}
