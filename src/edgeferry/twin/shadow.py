"""ShadowPolicy: what an operator says about trying a version in the shadow of the one that serves, before the switch.

It stands in the twin's `edgeferry.policy.shadow`, or in the TOML table `[shadow]`; what it does is docs/shadow.md.

Rules:
- One grammar for twin and settings file: the twin goes before the file, key by key; `null` for the whole turns it off.
- Reading never raises: what cannot be followed is told, and then nothing of the section is followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

_BOUNDS: Mapping[str, tuple[float, float]] = {
    "share": (0.001, 1.0),
    "cpu": (0.01, 1.0),
    "pictures": (1, 1_000_000),
    "for_s": (1, 31 * 86_400),
    "agreement": (0.0, 1.0),
}


@dataclass(frozen=True, slots=True)
class ShadowPolicy:
    """How a candidate is tried.

    Attributes:
        share: of the live pictures, which the candidate sees too.
        cpu: of one core, which it may take for that.
        pictures: so many compared are enough.
        for_s: the longest that the switch waits for them.
        agreement: the least mean agreement that lets the switch happen, over all `pictures`; 0: it is only told.
    """

    share: float = 0.1
    cpu: float = 0.25
    pictures: int = 200
    for_s: float = 86_400.0
    agreement: float = 0.0


def read_shadow_policy(section: object, base: ShadowPolicy | None = None) -> tuple[ShadowPolicy | None, str]:
    """The policy of `section` over `base`, None for no shadow; and what is wrong with it, or ""."""
    if section is None:
        return None, ""
    if not isinstance(section, Mapping):
        return None, "expected an object"
    problem = next(filter(None, (_find_problem(key, value) for key, value in section.items())), "")
    if problem:
        return None, problem
    changes: dict[str, Any] = dict(section)
    return replace(base or ShadowPolicy(), **changes), ""


def _find_problem(key: Any, value: Any) -> str:
    if key not in _BOUNDS:
        return f"expected one of {', '.join(_BOUNDS)}, found {key!r:.40}"
    least, most = _BOUNDS[key]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_whole = key != "pictures" or isinstance(value, int)
    if not is_number or not is_whole or not least <= value <= most:
        return f"expected {key} of {least:g} to {most:g}, found {value!r:.40}"
    return ""
