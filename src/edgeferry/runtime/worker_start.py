"""worker_start: `python -m edgeferry.runtime.worker_start FD FD [idle]`: imports the worker on a thread that gives way.

Rules:
- Its first act binds it to the life of its parent and says so with a byte: who stands still does not see the parent go.
- The import is most of what a worker does before it loads its model: like the load it gives way to what serves.
- The thread that gives way has ended before any thread is started that serves.
- Where sessions share time, this one gives way as a whole (`limits.py`), until its version is proven.
- Nothing is imported above but what Python has loaded anyway, and what calls the kernel.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from contextlib import suppress

_NICE = 10
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _bind_to_parent() -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.write(int(sys.argv[1]), b"\0")


def _import() -> None:
    if "idle" in sys.argv[3:]:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
    import edgeferry.runtime.worker  # noqa: F401


def main() -> None:
    """Imports, then hands over; what an import raises is raised again here."""
    _bind_to_parent()
    with suppress(OSError):
        group = os.open("/proc/self/autogroup", os.O_WRONLY)
        os.write(group, str(_NICE).encode())
        os.close(group)
    importing = threading.Thread(target=_import)
    importing.start()
    importing.join()
    from edgeferry.runtime.worker import main as run_worker

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it ends us in good order
    running = threading.Thread(target=run_worker)  # this one may be idle (`spawn.py`)
    running.start()
    running.join()


if __name__ == "__main__":
    main()
