"""The limit: the pipeline called in a loop in one process. For each line `N PICTURE` on standard input it answers the
picture N times and prints one line of JSON: seconds of each call, and CPU seconds of them all."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from pipeline import Pipeline


def measure(pipeline: Pipeline, picture: bytes, count: int) -> dict[str, object]:
    """Calls it `count` times."""
    took_s, cpu_began = [], time.process_time()
    for _ in range(count):
        began = time.perf_counter()
        pipeline(picture)
        took_s.append(time.perf_counter() - began)
    return {"took_s": took_s, "cpu_s": time.process_time() - cpu_began}


def main() -> None:
    """Serves lines until there are none."""
    pipeline = Pipeline()
    for line in sys.stdin:
        count, path = line.split()
        print(json.dumps(measure(pipeline, Path(path).read_bytes(), int(count))), flush=True)


if __name__ == "__main__":
    main()
