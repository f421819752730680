"""How far publishing is: bars with bytes, rate and time left on a terminal, plain lines elsewhere.

Both go to stderr: stdout is the result's.

Rules:
- An upload is told in tenths; coding and patching, which take long only for large files, every few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from edgeferry.cli.byte_progress import Tell, make_tenths

_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True)
class PublishProgress:
    """Whom to tell (bytes done, bytes in all): of the file that is coded or patched, and of the upload."""

    making: Tell
    uploading: Tell


@contextmanager
def open_publish_progress() -> Iterator[PublishProgress]:
    """Yields what is to be told; what else is said meanwhile stands above the bars."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield PublishProgress(_make_slow_lines(console, time.monotonic), make_tenths(console, "uploaded"))
        return
    columns = (BarColumn(30), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as bars:
        yield PublishProgress(_make_bar(bars, "making"), _make_bar(bars, "uploading"))


def _make_bar(bars: Progress, what: str) -> Tell:
    task = bars.add_task(f"{what:<9}", visible=False)
    latest = 0

    def tell(done: int, total: int) -> None:
        nonlocal latest
        if done < latest:  # another file
            bars.reset(task, total=total)
        latest = done
        bars.update(task, completed=done, total=total, visible=True)

    return tell


def _make_slow_lines(console: Console, clock: Callable[[], float]) -> Tell:
    told_at = clock()

    def tell(done: int, total: int) -> None:
        nonlocal told_at
        if clock() - told_at >= _PAUSE_S:
            told_at = clock()
            console.print(f"made {done:,} of {total:,} bytes", soft_wrap=True)

    return tell
