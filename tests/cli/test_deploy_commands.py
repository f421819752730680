"""`forecast` and `deploy --budget` as a person types them, against a real hub."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from click.testing import CliRunner, Result
from tests.publish.town import Town, open_town

from edgeferry.cli.main import cli
from edgeferry.wire.service_api import Identity

pytestmark = pytest.mark.asyncio(loop_scope="module")
PRICED = {"edgeferry": {"link": {"bps": 88_000, "rtt_s": 0.7, "price_per_mb": 6.5}}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Town]:
    """Modules d/m with a link that is told and priced, d/old without one, d/done which runs the version."""
    async with open_town(tmp_path_factory.mktemp("town")) as found:
        await found.set_desired(PRICED)
        await found.hub.add_module("d", "old")
        await found.hub.add_module("d", "done")
        await found.report_active(Identity("d", "done"), {"gauge": "1.0.0"})
        yield found


async def run(town: Town, verb: str, *words: str) -> Result:
    place = ["--model", "gauge", "--version", "1.0.0", "--repo", town.repo, "--ca-file", str(town.hub.ca_pem_path)]
    environment = {"EDGEFERRY_HUB": town.hub.service_connection_string}
    return await asyncio.to_thread(CliRunner().invoke, cli, [verb, *place, *words], env=environment)


def read_json(result: Result, exit_code: int = 0) -> Any:
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


def find_number_near(wanted: int, line: str) -> bool:
    """Whether a row tells it, to a few bytes: two forecasts read the twins twice, and once were 8 bytes apart."""
    told = [int(number.replace(",", "")) for number in re.findall(r"\b\d[\d,]*\b", line)]
    return any(abs(number - wanted) <= 32 for number in told)


async def test_a_table_tells_each_device_and_the_fleet(town: Town) -> None:
    result = await run(town, "forecast", "--device", "d/m", "--device", "d/old", "--device", "d/done")
    found = read_json(await run(town, "forecast", "--device", "d/m", "--device", "d/old", "--json"))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    names = ("d/m", "d/old", "d/done", "2 of 3 devices")
    told, silent, done, total = (next(line for line in lines if line.startswith(f"{name} ")) for name in names)
    assert "gauge.onnx in full" in told
    assert find_number_near(found["devices"][0]["wire_bytes"], told)
    assert "EUR" in told
    assert "speed not told" in silent
    assert "no price" in silent
    assert "nothing, it runs this version" in done
    assert find_number_near(found["wire_bytes"], total)
    assert "\x1b" not in result.stdout


async def test_a_link_is_told_by_name_or_in_figures(town: Town) -> None:
    for words in (("--link", "certus-100"), ("--bps", "88000", "--rtt", "0.7")):
        found = read_json(await run(town, "forecast", "--device", "d/m", "--device", "d/old", "--json", *words))
        told, silent = (one["transfer_s"] for one in found["devices"])
        assert told == pytest.approx(silent, rel=0.05)
    assert (await run(town, "forecast", "--device", "d/m", "--link", "pigeon")).exit_code == 2


async def test_nothing_to_do_is_5_and_who_cannot_be_asked_is_usage(town: Town) -> None:
    found = read_json(await run(town, "forecast", "--json"), exit_code=5)
    assert [(one["device"], one["needed"]) for one in found["devices"]] == [("d/done", False)]
    result = await run(town, "forecast", "--device", "nobody", "--device", "d/m")
    assert result.exit_code == 2
    assert "gauge.onnx" in result.stdout
    assert "nobody" in result.stderr


@pytest.mark.parametrize("budget", ["1kB", "0.01 EUR"])
async def test_over_its_budget_a_deployment_is_shown_and_refused(town: Town, budget: str) -> None:
    before = await town.read_desired()
    result = await run(town, "deploy", "--device", "d/m", "--budget", budget)
    assert result.exit_code == 4
    assert "gauge.onnx in full" in result.stdout
    assert "error over_budget" in result.stderr
    found = read_json(await run(town, "deploy", "--device", "d/m", "--budget", budget, "--json"), exit_code=4)
    assert found["updates"] == 1
    assert await town.read_desired() == before


async def test_a_budget_in_money_needs_a_price(town: Town) -> None:
    result = await run(town, "deploy", "--device", "d/old", "--budget", "5 EUR")
    assert result.exit_code == 2
    assert "price_per_mb" in result.stderr


async def test_within_its_budget_or_anyway_a_deployment_is_told(town: Town, tmp_path: Path) -> None:
    for device, words in (("d/m", ("--budget", "5MB")), ("d/old", ("--budget", "5 EUR", "--anyway"))):
        report = read_json(await run(town, "deploy", "--device", device, "--json", *words))
        assert report == [{"device": device, "changed": True, "error": None}]
        assert "gauge" in (await town.read_desired(device))["edgeferry"]["models"]


@pytest.mark.parametrize("words", [("--classic",), ("--renew-sas",), ("--budget", "much")])
async def test_a_budget_that_nothing_is_foreseen_for_is_usage(town: Town, words: tuple[str, ...]) -> None:
    result = await run(town, "deploy", "--device", "d/m", "--budget", "5MB", *words)
    assert result.exit_code == 2
    assert "budget" in result.stderr
