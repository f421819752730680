"""schemathesis finds nothing in the inference API that its own description does not say: no 500, no odd status."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeferry.app.local_models import open_local_versions
from edgeferry.app.serving import serve_models
from schemathesis_runs import run_schemathesis_on_api


@pytest.mark.parametrize(
    "options",
    [
        ("--generation-deterministic", "--max-examples", "20"),
        pytest.param(
            ("--seed", "1", "--generation-database", "none", "--max-examples", "500"), marks=pytest.mark.soak_full
        ),
    ],
    ids=["some calls", "many calls"],
)
async def test_schemathesis_finds_nothing(demo_models: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    paths = [demo_models / "detector" / "1.1.0" / "detector.onnx", demo_models / "gauge" / "1.0.0" / "gauge.onnx"]
    with open_local_versions(paths) as versions:
        async with serve_models(versions, port=0, default_model=versions[0].model) as address:
            outcome = await run_schemathesis_on_api(address.url, tmp_path, *options)
    assert outcome.exit_code == 0, outcome.text
