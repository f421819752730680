"""Makes the demo models: `python -m models.build`. With `--check`, only measures the committed files (no torch).

Trains what has no checkpoint in `models/.cache/` (`--fresh` forgets checkpoints), exports, draws the committed
pictures, prints the tables, rewrites the model card. Exit code 1 when a file misses a target.
"""

import argparse
import sys

from models.card import make_detector_table, make_gauge_table, write_card
from models.check import ROOT, check_detectors, check_gauges
from models.train.dataset import CACHE


def main() -> int:
    """Builds or checks; returns the exit code."""
    arguments = _parse_arguments()
    if not arguments.check:
        if arguments.fresh:
            for checkpoint in CACHE.glob("*.pt"):
                checkpoint.unlink()
        build()
    detectors, gauges = check_detectors(), check_gauges()
    print(f"\n{make_detector_table(detectors)}\n\n{make_gauge_table(gauges)}\n")
    if not arguments.check:
        write_card(detectors, gauges)
    misses = [miss for report in detectors for miss in report.misses()]
    misses += [miss for report in gauges for miss in report.misses()]
    print("\n".join(f"MISSED: {miss}" for miss in misses) or "every target is met")
    return 1 if misses else 0


def build() -> None:
    """Trains, exports, draws."""
    # Imported here, so that --check needs no torch.
    from models.train.export import export_detector, export_gauge
    from models.train.gauge import train_gauge
    from models.train.pictures import write_pictures
    from models.train.stages import train_detectors

    gauge = train_gauge()
    for version, net in train_detectors().items():
        export_detector(ROOT / "detector" / version, version, net)
    export_gauge(ROOT / "gauge" / "1.0.0", gauge)
    write_pictures(ROOT)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m models.build", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only measure the committed files")
    parser.add_argument("--fresh", action="store_true", help="train again what has a checkpoint")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
