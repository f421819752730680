"""What is foreseen is what it takes: a version is published and forecast, then a real device takes it over a real link.

Compared are the ledger's bytes: on the link's own count they are right (`test_updates_over_thin_links.py`).
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from e2e.tiny_models import make_quadrant_bundle, make_zip
from edgeferry.link.forecast import get_gather_s
from link.profiles import LTE_M, Profile
from link.thin_link import open_link
from link.thin_site import (
    COMMAND,
    DEVICE,
    MODEL,
    MODULE,
    Device,
    Prepared,
    ThinSite,
    open_thin_site,
    run_command,
)

pytestmark = [pytest.mark.usefixtures("needs_link"), pytest.mark.soak]
LTE = Profile("lte", 10_000_000, 0.05)
BALLAST_BYTES = 760_000
CHANGED_FLOATS = 8_000
FORESEEN_MAX_SHARE = 0.03
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return publish_both(tmp_path_factory.mktemp("forecast") / "prepared")


@pytest.fixture(scope="module", params=[LTE, pytest.param(LTE_M, marks=pytest.mark.soak)], ids=lambda one: one.name)
def site(
    request: pytest.FixtureRequest, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ThinSite]:
    """A hub with two published versions, the second with a patch from the first, and a device that has neither."""
    folder = tmp_path_factory.mktemp("site")
    with open_link(request.param) as link, open_thin_site(link, prepared, folder) as found:
        yield replace(found, identity=find_connection(found, DEVICE, "--module", MODULE))


@pytest.fixture
def device(site: ThinSite) -> Iterator[Device]:
    """The device, started for this test: a connection that the test before left open would spare it a handshake."""
    device = site.start_device()
    yield device
    device.stop()


def find_connection(site: ThinSite, *words: str) -> str:
    """A connection string: the hub knows its own name only once it has run."""
    return run_command("hub", "device", "connection-string", *words, "--data", site.folder / "hub").strip()


def publish_both(folder: Path) -> Prepared:
    folder.mkdir()
    place = ("--to", folder / "site", "--keys", folder / "keys")
    run_command("repo", "init", *place)
    bundle = make_quadrant_bundle(ballast_bytes=BALLAST_BYTES)
    for version, data in (("1.0.0", bundle), ("1.1.0", train_further(bundle))):
        (folder / "model.zip").write_bytes(data)
        named = ("--name", MODEL, "--version", version, "--json")
        report = json.loads(run_command("publish", folder / "model.zip", *named, *place))
    [patch] = report["patches"]
    assert patch["size"] > 20_000
    run_command("hub", "device", "add", DEVICE, "--module", MODULE, "--data", folder / "hub")
    (folder / "identity").touch()
    return Prepared(folder, patch["size"], int(report["download_bytes"]))


def train_further(bundle: bytes) -> bytes:
    """The same bundle, some of whose weights are others."""
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    model = onnx.load_from_string(files["quadrants.onnx"])
    [ballast] = [one for one in model.graph.initializer if one.name == "ballast"]
    weights = numpy_helper.to_array(ballast).copy()
    weights[:CHANGED_FLOATS] = np.random.default_rng(8).random(CHANGED_FLOATS, np.float32)
    ballast.CopyFrom(numpy_helper.from_array(weights, "ballast"))
    return make_zip({**files, "quadrants.onnx": model.SerializeToString()})


def run_operator(site: ThinSite, verb: str, version: str, *more: str) -> Any:
    """`forecast` or `deploy`, on the hub's side of the link."""
    environment = {**os.environ, "EDGEFERRY_HUB": find_connection(site, "--service")}
    given = ["--model", MODEL, "--version", version, "--device", f"{DEVICE}/{MODULE}", "--json", *more]
    given += ["--repo", f"{site.ready['service_url']}/files", "--site", str(site.folder / "site")]
    given += ["--ca-file", site.ready["ca_path"]]
    return json.loads(site.link.right.run([*COMMAND, verb, *given], env=environment).stdout)


def read_total(site: ThinSite, device: Device) -> int:
    """The ledger, once all is quiet, and the last report sent."""
    site.wait_quiet(get_gather_s(2 * site.link.profile.rtt_s) + 1.0)
    return int((device.find_status() or {})["ledger"]["total_bytes"])


def is_active(device: Device, version: str) -> bool:
    models = (device.find_status() or {}).get("models") or [{}]
    return (models[0].get("state"), models[0].get("active")) == ("ACTIVE", version)


@pytest.mark.parametrize(("version", "kind"), [("1.0.0", "full"), ("1.1.0", "patch")])
def test_a_download_takes_what_was_foreseen(site: ThinSite, device: Device, version: str, kind: str) -> None:
    """The second runs behind the first: its patch needs what that one brought."""
    site.wait_connected(device, TIMEOUT_S)
    before = read_total(site, device)
    words = ["--bps", str(site.link.profile.bps), "--rtt", str(site.link.profile.rtt_s)]
    [foreseen] = run_operator(site, "forecast", version, *words)["devices"]
    assert kind in {step["kind"] for step in foreseen["steps"]}
    run_operator(site, "deploy", version)
    site.wait(device, lambda: is_active(device, version), TIMEOUT_S)
    took_bytes = read_total(site, device) - before
    assert took_bytes == pytest.approx(foreseen["wire_bytes"], rel=FORESEEN_MAX_SHARE)
