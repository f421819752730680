"""Runs pytest with the arguments given; what failed beside other tests on a busy machine is asked once more, alone.

A defect fails both times. A test that lost a race against its neighbours passes alone: it is named, to be mended. More
than AGAIN_MAX failures are no such race, and are not asked again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

AGAIN_MAX = 3
_TESTS_FAILED = 1  # pytest.ExitCode.TESTS_FAILED


def main() -> int:
    """Returns pytest's exit code, or 0 when all that failed passed alone."""
    with tempfile.TemporaryDirectory() as cache:
        pytest = (sys.executable, "-m", "pytest", "-o", f"cache_dir={cache}")
        code = subprocess.call([*pytest, *sys.argv[1:]])
        lost = Path(cache) / "v" / "cache" / "lastfailed"
        failed = list(json.loads(lost.read_text())) if lost.exists() else []
        if code != _TESTS_FAILED or not 0 < len(failed) <= AGAIN_MAX:
            return code
        print(f"\nOnce more, alone: {', '.join(failed)}", flush=True)
        code = subprocess.call([*pytest, *failed])
        print(f"\n{'FAILED TWICE' if code else 'PASSED ALONE, failed beside others'}: {', '.join(failed)}")
        return code


if __name__ == "__main__":
    sys.exit(main())
