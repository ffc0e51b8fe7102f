"""Prints what this process was born with, as JSON: run as a module, by a new interpreter or forked from a ready one."""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import sys
import threading
from pathlib import Path


def tell_birth() -> dict[str, object]:
    streams = (sys.stdin, sys.stdout, sys.stderr)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "arguments": sys.argv,
        "module": sys.modules["__main__"].__name__,
        "cwd": str(Path.cwd()),
        "env": dict(os.environ),
        "path": sys.path,
        "descriptors": sorted(int(one.name) for one in list(Path("/proc/self/fd").iterdir()) if one.exists()),
        "streams": [
            (one.fileno(), one.name, one.encoding, one.errors, one.line_buffering, one.mode, one.isatty())
            for one in streams
        ],
        "seekable": [one.seekable() for one in streams],
        "signals": {name: status[name].strip() for name in ("SigBlk", "SigIgn", "SigCgt")},
        "python signals": {int(one): str(signal.getsignal(one)) for one in signal.valid_signals()},
        "umask": status["Umask"].strip(),
        "is session leader": os.getsid(0) == os.getpid(),
        "threads": (threading.active_count(), threading.current_thread() is threading.main_thread()),
        "gc": (gc.isenabled(), gc.get_threshold()),
    }


if __name__ == "__main__":
    print(json.dumps(tell_birth(), default=str), flush=True)
    how = sys.argv[1] if len(sys.argv) > 1 else ""
    if how == "exit functions":
        atexit.register(print, "the last word")
        threading.Timer(0.2, print, ["a thread's word"]).start()
    elif how == "sentence":
        sys.exit("a sentence")
    elif how == "error":
        raise RuntimeError("broken")
    elif how == "interrupt":
        raise KeyboardInterrupt
    elif how == "large":
        sys.exit(1000)
    elif how == "closed":
        os.close(1)
        print("lost")
