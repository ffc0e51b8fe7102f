"""What use cases refuse and a face may help out of. Each says what is wrong; the face adds its own way to put it right.

None of the sentences names an option of the command line: `worker/cli/advice.py` does.
"""

from __future__ import annotations

from worker.errors import InputError, InUse, Refused


class PromptMissing(InputError):
    """Documents without a prompt."""


class ModelMissing(InputError):
    """No model was named, and the endpoint does not run just one."""


class KeyMissing(Refused):
    """No key was given, and the endpoint is one that needs a key."""


class Unfinished(InUse):
    """The batch is not done. What has ended of it goes only with `even_unfinished`."""


class UnusableQueueName(InputError):
    """The name of the queue is empty, too long, or has characters that nothing prints."""


class WouldBeSetAside(InUse):
    """Live workers of this ledger read the queue, and would set its messages aside again."""
