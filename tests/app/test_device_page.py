"""docs/device.md tells the truth: its table is DeviceConfig, its variables and exit codes are ours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from edgeferry.cli import exit_codes
from edgeferry.config import CONNECTION_VARIABLES, DeviceConfig, WorkloadConfig, read_device_config

PAGE = (Path(__file__).parent.parent.parent / "docs" / "device.md").read_text()
ROWS = dict(re.findall(r"^\| `(\w+)` \| (`[^`]*`|none) \|", PAGE.partition("## Keys")[2].partition("\n## ")[0], re.M))


def read_default(cell: str) -> object:
    return None if cell == "none" else json.loads(cell.strip("`"))


@pytest.mark.parametrize("key", DeviceConfig.__struct_fields__)
def test_every_key_stands_in_the_table_with_its_default(key: str) -> None:
    default = msgspec.to_builtins(getattr(DeviceConfig(), key))
    assert read_default(ROWS[key]) == (list(default) if isinstance(default, tuple) else default)


def test_the_table_has_no_other_key() -> None:
    assert list(ROWS) == list(DeviceConfig.__struct_fields__)


def test_the_example_is_a_settings_file() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    assert read_device_config(example.encode(), {}).rate_bps == 64000


@pytest.mark.parametrize("field", WorkloadConfig.__struct_fields__)
def test_the_workload_table_is_named_field_by_field(field: str) -> None:
    assert f"`{field}`" in next(line for line in PAGE.splitlines() if line.startswith("| `workload`"))


def test_every_variable_is_named_in_the_order_of_the_code() -> None:
    assert ", ".join(f"`{name}`" for name in CONNECTION_VARIABLES) in PAGE
    for name in ("EDGEFERRY_TOKEN", "EdgeModuleCACertificateFile"):
        assert f"| `{name}` |" in PAGE
    edge = dict.fromkeys(re.findall(r"IOTEDGE_[A-Z]+", PAGE), "x")
    assert read_device_config(None, edge).workload is not None


def test_every_exit_code_has_its_row() -> None:
    codes = {value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)}
    assert {int(code) for code in re.findall(r"^\| (\d) \|", PAGE, re.M)} == codes
