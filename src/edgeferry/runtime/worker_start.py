"""worker_start: `python -m edgeferry.runtime.worker_start FD`: imports the worker on a thread at nice 10, then runs it.

Rules:
- The import is most of what a worker does before it loads its model: like the load it gives way to what serves.
- The niced thread has ended before any thread is started that serves.
- Where sessions share time, this one gives way as a whole (`limits.py`), until its version is proven.
- Nothing is imported above but what Python has loaded anyway.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress

_NICE = 10


def _import() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
    import edgeferry.runtime.worker  # noqa: F401


def main() -> None:
    """Imports, then hands over; what an import raises is raised again here."""
    with suppress(OSError):
        group = os.open("/proc/self/autogroup", os.O_WRONLY)
        os.write(group, str(_NICE).encode())
        os.close(group)
    importing = threading.Thread(target=_import)
    importing.start()
    importing.join()
    from edgeferry.runtime.worker import main as run_worker

    run_worker()


if __name__ == "__main__":
    main()
