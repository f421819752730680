"""Coverage-guided fuzzing of a row of fuzz_targets.py or patch_targets.py.

Runs in the environment made from requirements/atheris.txt.

Usage: python atheris_mqtt.py TARGET CORPUS [libFuzzer's options]. PYTHONPATH names src/ and tests/.
"""

from __future__ import annotations

import sys

import atheris

INSTRUMENTED = ["edgeferry.wire", "edgeferry.delta", "hostile_mqtt", "soak.fuzz_targets", "soak.patch_targets"]
with atheris.instrument_imports(include=INSTRUMENTED):
    from soak import patch_targets
    from soak.fuzz_targets import PLANTED, TARGETS

if __name__ == "__main__":
    target = {**TARGETS, **patch_targets.TARGETS, "planted": PLANTED}[sys.argv[1]]
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target.read)
    atheris.Fuzz()
