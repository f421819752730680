"""Makes the corpus of version pairs: `.venv-models/bin/python -m scripts.delta_corpus [--to FOLDER] [--only WORD]`.

Writes `FOLDER/<class>/<name>/{v1,v2}.{onnx,tflite}` and `FOLDER/corpus.json`, and prints a line per pair. A pair that
is there already is not made again, and a net that was trained for one pair serves the others: after a change of an edit
or a recipe, remove the folder.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from scripts.delta_corpus.making import group_by_net, make_pairs, write_index
from scripts.delta_corpus.pairs import ROOT, list_pairs

WORKERS = 2


def main() -> int:
    """Makes what is missing and writes the index."""
    parser = argparse.ArgumentParser(prog="python -m scripts.delta_corpus", description=__doc__)
    parser.add_argument("--to", type=Path, default=ROOT / ".cache" / "delta-corpus", help="folder of the corpus")
    parser.add_argument("--only", default="", help="only pairs with this word in their class or name")
    options = parser.parse_args()
    pairs, started_s = list_pairs(), time.monotonic()
    nets = group_by_net([pair for pair in pairs if options.only in f"{pair.kind}/{pair.name}"])
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as pool:
        made = [pool.submit(make_pairs, list(names), options.to) for names in nets]
        for future in as_completed(made):
            future.result()
            write_index(options.to, pairs)
    print(f"{time.monotonic() - started_s:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
