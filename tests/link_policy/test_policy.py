"""What an operator writes is followed key by key; what cannot be followed is said and changes nothing."""

from __future__ import annotations

import json
import math
import re
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeferry.link.policy import LinkPolicy, read_link_policy
from edgeferry.link.windows import Window

PAGE = (Path(__file__).parent.parent.parent / "docs" / "link-policy.md").read_text()
ROWS = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| (`[^`]*`|none) \|", PAGE, re.M))
NIGHT = {"cron": "0 2 * * *", "duration_s": 7200}

GOOD = [
    ({}, {}),
    ({"windows": [NIGHT], "zone": "Europe/Berlin"}, {"windows": (Window("0 2 * * *", 7200, "Europe/Berlin"),)}),
    ({"windows": [NIGHT]}, {"windows": (Window("0 2 * * *", 7200, "UTC"),)}),
    ({"windows": []}, {"windows": ()}),
    ({"rate_bps": 64000, "bps": 88000, "rtt_s": 1}, {"rate_bps": 64000, "link_bps": 88000, "rtt_s": 1.0}),
    ({"day_bytes": 500_000, "month_bytes": 0}, {"day_bytes": 500_000, "month_bytes": 0}),
    ({"price_per_mb": 7.5, "currency": "USD"}, {"price_per_mb": 7.5, "currency": "USD"}),
    ({"class": "forbidden", "hub": "windows"}, {"link_class": "forbidden", "hub": "windows"}),
    ({"urgent_priority": -5, "keepalive_s": 600, "report_share": 0}, {"urgent_priority": -5, "keepalive_s": 600}),
    ({"rate_bps": None, "windows": None, "unknown": None}, {}),
]

BAD: list[tuple[str, Any]] = [
    ("unknown", 1), ("rate_bps", -1), ("rate_bps", "fast"), ("rate_bps", True), ("rate_bps", 1.5),
    ("rate_bps", (1 << 40) + 1), ("day_bytes", 100), ("day_bytes", -1), ("price_per_mb", -0.5),
    ("price_per_mb", math.nan), ("price_per_mb", math.inf), ("price_per_mb", "7"), ("currency", "\n"), ("currency", 3),
    ("class", "cheap"), ("class", []), ("hub", True), ("urgent_priority", "high"), ("keepalive_s", 0),
    ("keepalive_s", 1178), ("report_share", 0.9), ("rtt_s", -1), ("bps", []), ("zone", 3), ("zone", "Mars"),
    ("windows", {}), ("windows", "0 2 * * *"), ("windows", [NIGHT] * 17), ("windows", ["0 2 * * *"]),
    ("windows", [{"cron": "0 2 * * *"}]), ("windows", [NIGHT, {**NIGHT, "cron": "0 0 30 2 *"}]),
    ("windows", [{**NIGHT, "duration_s": "7200"}]), ("windows", [{**NIGHT, "zone": "UTC"}]),
    ("windows", [{**NIGHT, "cron": 2}]), ("interfaces", []), ("interfaces", {"eth0": "cheap"}),
    ("interfaces", {"": "free"}), ("interfaces", {"a b": "free"}), ("interfaces", {"x" * 33: "free"}),
    ("interfaces", {f"eth{n}": "free" for n in range(17)}),
]  # fmt: skip


@pytest.mark.parametrize(("section", "says"), GOOD)
def test_what_is_written_is_followed_and_the_rest_stays(section: dict[str, Any], says: dict[str, Any]) -> None:
    policy, problems = read_link_policy(section)
    assert problems == ()
    expected = {"zone": section["zone"]} if "zone" in section else {}
    share = {"report_share": 0.0} if "report_share" in section else {}
    assert policy == replace(LinkPolicy(), **says, **expected, **share)


@pytest.mark.parametrize(("key", "value"), BAD)
def test_a_bad_value_is_named_and_the_bases_stays(key: str, value: object) -> None:
    base, _ = read_link_policy({"windows": [NIGHT], "zone": "Asia/Kolkata", "rate_bps": 5, "day_bytes": 100_000})
    policy, problems = read_link_policy({key: value, "month_bytes": 1_000_000}, base)
    assert policy == replace(base, month_bytes=1_000_000)
    assert [problem.key for problem in problems] == [key]
    assert problems[0].message.startswith("expected ") and len(problems[0].message) < 300


def test_a_zone_alone_moves_the_windows_of_the_base() -> None:
    base, _ = read_link_policy({"windows": [NIGHT]})
    policy, _ = read_link_policy({"zone": "Europe/Berlin"}, base)
    assert policy.windows == (Window("0 2 * * *", 7200, "Europe/Berlin"),)


def test_an_interface_counts_by_its_name_then_by_the_pattern_that_says_most_then_by_the_class_of_all() -> None:
    section = {"interfaces": {"*": "forbidden", "wwan*": "metered", "wwan0": "free", "eth?": "free"}}
    for interfaces in (section["interfaces"], dict(reversed(section["interfaces"].items()))):
        policy, problems = read_link_policy({"interfaces": interfaces})
        assert problems == ()
        asked = [policy.get_class(name) for name in ("wwan0", "wwan1", "eth0", "eth10")]
        assert asked == ["free", "metered", "free", "forbidden"]
    assert LinkPolicy().get_class("eth0") == "metered"
    assert replace(LinkPolicy(), link_class="free").get_class("") == "free"


def test_a_price_is_for_a_million_bytes() -> None:
    assert LinkPolicy(price_per_mb=8.0).get_price(250_000) == 2.0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=8), below, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from([key for key, _ in BAD] + ["other"]) | st.text(max_size=8)


@given(st.dictionaries(KEYS, JSON, max_size=6))
def test_whatever_a_cloud_writes_is_read_without_raising(section: dict[str, Any]) -> None:
    policy, problems = read_link_policy(section)
    assert {problem.key for problem in problems} <= {key[:40] for key in section}
    assert hash(policy) == hash(replace(policy))


# --- the page ---------------------------------------------------------------------------------------------------------
def test_the_page_names_every_key_with_its_default() -> None:
    names = {"class": "link_class", "bps": "link_bps"}
    default = LinkPolicy()
    for key, cell in ROWS.items():
        value = getattr(default, names.get(key, key))
        assert (None if cell == "none" else json.loads(cell.strip("`"))) == (
            {} if key == "interfaces" else list(value) if isinstance(value, tuple) else value
        ), key
    assert {names.get(key, key) for key in ROWS} == {field.name for field in fields(LinkPolicy)}


def test_every_example_of_the_page_is_followed_whole() -> None:
    twins = [json.loads(text)["edgeferry"]["link"] for text in re.findall(r"```json\n(.*?)```", PAGE, re.S)]
    files = [tomllib.loads(text)["link"] for text in re.findall(r"```toml\n(.*?)```", PAGE, re.S)]
    assert len(twins) >= 2 and len(files) >= 1
    for section in (*twins, *files):
        policy, problems = read_link_policy(section)
        assert problems == () and policy != LinkPolicy()
