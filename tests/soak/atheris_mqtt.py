"""Coverage-guided fuzzing of a row of fuzz_targets.py; runs in the environment made from requirements/atheris.txt.

Usage: python atheris_mqtt.py TARGET CORPUS [libFuzzer's options]. PYTHONPATH names src/ and tests/.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["edgeferry.wire", "hostile_mqtt", "soak.fuzz_targets"]):
    from soak.fuzz_targets import PLANTED, TARGETS

if __name__ == "__main__":
    target = {**TARGETS, "planted": PLANTED}[sys.argv[1]]
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target.read)
    atheris.Fuzz()
