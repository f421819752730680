"""What schemathesis leaves out against the hub: waiting. A method that nobody answers would take its 300 seconds."""

from __future__ import annotations

from typing import Any

import schemathesis

WAIT_MAX_S = 1
_FIELDS = ("responseTimeoutInSeconds", "connectTimeoutInSeconds")


@schemathesis.hook
def before_call(_: Any, case: schemathesis.Case, __: dict[str, Any]) -> None:
    """Makes every time-out that the hub would take a short one; those that it must refuse stay."""
    if case.path.endswith("/methods") and isinstance(case.body, dict):
        for field in _FIELDS:
            wanted = case.body.get(field)
            if isinstance(wanted, int | float) and not isinstance(wanted, bool) and WAIT_MAX_S < wanted <= 300:
                case.body[field] = WAIT_MAX_S
