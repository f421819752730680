"""limits: what a process and its threads may use; thin calls into Linux, used by the worker.

Rules:
- A thread that is niced gets its small share however many others run; one that is idle (SCHED_IDLE) may get none.
- Soft limits only: they are raised back to the hard ones once a model is proven.
- Niceness is per thread on Linux: `setpriority(PRIO_PROCESS, tid)`. It cannot be lowered again without privilege, and
  new threads inherit it, so threads that serve are neither niced nor started from a niced thread.
- Where the kernel shares time among sessions first (autogroup, sched(7)), niceness of threads counts within a session
  only, and a worker has one of its own. The session's niceness counts there, and can be taken back.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import threading
import time
from pathlib import Path

_TRIES, _TRY_AGAIN_S = 50, 0.11


def set_thread_nice(nice: int) -> None:
    """Makes the calling thread give way to others."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)


def set_thread_idle() -> None:
    """Makes the calling thread run where nobody else wants to, until somebody does (sched(7), SCHED_IDLE)."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def end_group_nice() -> None:
    """Gives this session its usual share again, which `worker_start.py` took. Ten such wishes a second are heard."""
    for _ in range(_TRIES):
        try:
            Path("/proc/self/autogroup").write_text("0")
        except BlockingIOError:
            time.sleep(_TRY_AGAIN_S)
        except OSError:  # a kernel without autogroups
            return
        else:
            return


def set_soft_limit(which: int, value: int) -> None:
    """Sets a soft resource limit, at most the hard one."""
    _, hard = resource.getrlimit(which)
    resource.setrlimit(which, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def lift_soft_limit(which: int) -> None:
    """Raises a soft resource limit back to the hard one."""
    _, hard = resource.getrlimit(which)
    resource.setrlimit(which, (hard, hard))


def read_virtual_bytes() -> int:
    """Address space in use (VmSize), bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def read_cpu_seconds() -> float:
    """CPU time this process has used so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def trim_heap() -> None:
    """Gives free heap back to the system: glibc keeps what a load or a proof has freed, otherwise."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
