"""worker_start: `python -m edgeferry.runtime.worker_start FD`: imports the worker on a thread at nice 10, then runs it.

Rules:
- The import is most of what a worker does before it loads its model: like the load it gives way to what serves elsewhere.
- The niced thread has ended before any thread is started that serves.
- Nothing is imported above but what Python has loaded anyway.
"""

from __future__ import annotations

import os
import threading

_NICE = 10


def _import() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
    import edgeferry.runtime.worker  # noqa: F401


def main() -> None:
    """Imports, then hands over; what an import raises is raised again here."""
    importing = threading.Thread(target=_import)
    importing.start()
    importing.join()
    from edgeferry.runtime.worker import main as run_worker

    run_worker()


if __name__ == "__main__":
    main()
