"""How far an upload is: a bar with bytes, rate and time left on a terminal, a line for each tenth elsewhere.

Both go to stderr: stdout is the result's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from edgeferry.publish.publisher import Progress as Tell


@contextmanager
def open_upload_progress() -> Iterator[Tell]:
    """Yields what is to be told (bytes done, bytes in all); what else is said meanwhile stands above the bar."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _make_plain(console)
        return
    columns = (BarColumn(30), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("uploading"), *columns, console=console) as bar:
        task = bar.add_task("", visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def _make_plain(console: Console) -> Tell:
    told = -1

    def tell(done: int, total: int) -> None:
        nonlocal told
        tenths = done * 10 // max(total, 1)
        if tenths > told:
            told = tenths
            console.print(f"uploaded {done:,} of {total:,} bytes", soft_wrap=True)

    return tell
