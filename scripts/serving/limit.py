"""The limit: the pipeline called in a loop in one process.

For each line `N CALLERS PICTURE` on standard input that many threads answer the picture N times in all, and one line of
JSON says the seconds of each call and the CPU seconds of them all.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from pipeline import Pipeline


def measure(pipeline: Pipeline, picture: bytes, count: int, callers: int) -> dict[str, object]:
    """Calls it `count` times."""
    took_s: list[float] = []
    left = iter(range(count))

    def call() -> None:
        for _ in left:
            began = time.perf_counter()
            pipeline(picture)
            took_s.append(time.perf_counter() - began)

    cpu_began = time.process_time()
    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"took_s": took_s, "cpu_s": time.process_time() - cpu_began}


def main() -> None:
    """Serves lines until there are none."""
    pipeline = Pipeline()
    for line in sys.stdin:
        count, callers, path = line.split(maxsplit=2)
        told = measure(pipeline, Path(path.strip()).read_bytes(), int(count), int(callers))
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
