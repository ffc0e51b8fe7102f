"""How long a run waits at a shut gate before it ends, with its jobs kept. Pure."""

from __future__ import annotations

# Between two cooldowns the gate is open for a moment. A gate that is open for longer lets calls through.
_OPEN_FOR_S = 5.0


class RunPatience:
    """Is told at each refresh how many jobs have ended, and whether the gate is shut. Times are monotonic seconds."""

    def __init__(self, patience_s: float | None, *, now_s: float) -> None:
        """`patience_s` None: it never ends."""
        self._patience_s = patience_s
        self._done = -1
        self._moved_s = now_s
        self._open_since_s: float | None = None

    def is_spent(self, *, done: int, is_shut: bool, now_s: float) -> bool:
        """Whether no job has ended for that long, and the gate kept them waiting all that time."""
        if done != self._done:
            self._done, self._moved_s = done, now_s
        if is_shut:
            self._open_since_s = None
        elif self._open_since_s is None:
            self._open_since_s = now_s
        if self._open_since_s is not None and now_s - self._open_since_s >= _OPEN_FOR_S:
            self._moved_s = now_s
        return self._patience_s is not None and is_shut and now_s - self._moved_s >= self._patience_s
