"""How far long work on bytes is: a bar with rate and time left on a terminal, a line for each tenth elsewhere.

Both go to stderr: stdout is the result's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

Tell = Callable[[int, int], None]
"""Is told bytes done, and bytes in all."""


@contextmanager
def open_byte_progress(doing: str, done_word: str) -> Iterator[Tell]:
    """Yields what is to be told; what else is said meanwhile stands above the bar.

    Args:
        doing: beside the bar, such as "uploading".
        done_word: first word of a plain line, such as "uploaded".
    """
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield make_tenths(console, done_word)
        return
    columns = (BarColumn(30), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn(doing), *columns, console=console) as bar:
        task = bar.add_task("", visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def make_tenths(console: Console, done_word: str) -> Tell:
    """Tells a line for each tenth."""
    told = -1

    def tell(done: int, total: int) -> None:
        nonlocal told
        tenths = done * 10 // max(total, 1)
        if tenths > told:
            told = tenths
            console.print(f"{done_word} {done:,} of {total:,} bytes", soft_wrap=True)

    return tell
