"""limits: what a process and its threads may use; thin calls into Linux, used by the worker.

Rules:
- Soft limits only: they are raised back to the hard ones once a model is proven.
- Niceness is per thread on Linux: `setpriority(PRIO_PROCESS, tid)`. It cannot be lowered again without privilege, and
  new threads inherit it, so threads that serve are neither niced nor started from a niced thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import threading
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def set_thread_nice(nice: int) -> None:
    """Makes the calling thread give way to others."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)


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


def die_with_parent() -> None:
    """SIGKILL when the thread that started this process ends, even while an engine holds everything else up."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def trim_heap() -> None:
    """Gives free heap back to the system: glibc keeps what a load or a proof has freed, otherwise."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
