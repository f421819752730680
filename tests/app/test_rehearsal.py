"""Updates are rehearsed over links in user space: real devices, a real hub, versions published here."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import onnx
import pytest

from edgeferry.app.operator import Place, PublishFiles, make_repository, publish_files
from edgeferry.app.rehearsal import Figures, ForecastFigures, find_error, rehearse, require_short
from edgeferry.app.rehearsal_plan import Copying, RehearsalPlan, Source, read_plan
from edgeferry.app.rehearsal_stage import Rehearsal
from edgeferry.cli.exit_codes import LINK, REFUSED, get_exit_code
from edgeferry.errors import ConfigInvalid, MetadataExpired, MetadataUntrusted, ObjectMissing
from edgeferry.link.forecast import LinkRate

FAST = LinkRate(400_000, 0.1)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, demo_models: Path) -> Path:
    """gauge 1.0.0; 1.1.0, a patch away from it; 1.2.0, whose labels stand in the wrong order."""
    folder = tmp_path_factory.mktemp("published")
    place = Place(str(folder / "site"), folder / "keys", {})
    make_repository(place)
    gauge, golden = demo_models / "gauge" / "1.0.0", demo_models / "gauge" / "golden"
    model = onnx.load(gauge / "gauge.onnx")
    model.doc_string = "the same, said again"
    (folder / "gauge.onnx").write_bytes(model.SerializeToString())
    labels = (gauge / "labels.txt").read_text().split()
    (folder / "labels.txt").write_text("\n".join(labels[::-1]))
    for version, file, own_labels, truth in (
        ("1.0.0", gauge / "gauge.onnx", gauge / "labels.txt", golden),
        ("1.1.0", folder / "gauge.onnx", gauge / "labels.txt", None),
        ("1.2.0", folder / "gauge.onnx", folder / "labels.txt", None),
    ):
        files = PublishFiles(file, "gauge", version, labels=own_labels, golden=truth)
        publish_files(files, place, say=lambda text: None)
    return folder / "site"


async def plan_update(published: Path, version: str, base: str = "") -> RehearsalPlan:
    return await read_plan(Source(str(published)), "gauge", version=version, base=base, copy_to=Path("/nowhere"))


async def play(rehearsal: Rehearsal) -> Figures:
    shares: list[float] = []
    figures = await rehearse(rehearsal, say=lambda text: None, progress=lambda share, words: shares.append(share))
    assert shares[0] < 1
    return figures


async def test_an_update_by_patch_is_played_while_the_device_answers(published: Path) -> None:
    plan = await plan_update(published, "1.1.0")
    assert plan.base == "1.0.0"
    figures = await play(Rehearsal(plan, FAST))
    assert (figures.state, figures.error, figures.route) == ("ACTIVE", None, "patch")
    assert figures.payload_bytes == figures.forecast.payload_bytes == plan.artifacts[0].size
    assert figures.payload_bytes < figures.stream_bytes < figures.wire_bytes
    assert figures.requests > 0
    assert figures.failures == []


async def test_a_version_that_a_device_refuses_is_refused_in_the_rehearsal(published: Path) -> None:
    figures = await play(Rehearsal(await plan_update(published, "1.2.0"), FAST))
    assert figures.state == "REJECTED"
    assert figures.error is not None
    assert figures.error["code"] == "golden_mismatch"
    assert figures.failed == 0
    kind = find_error(figures)
    assert kind is not None
    assert get_exit_code(kind) == REFUSED


@pytest.fixture
def site_url(published: Path) -> Iterator[str]:
    """The repository behind a plain HTTP server."""
    handler = functools.partial(QuietHandler, directory=str(published))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


async def test_a_fresh_loader_takes_what_was_forecast_of_what_lies_behind_a_url_and_a_cut_costs_its_time(
    site_url: str, tmp_path: Path
) -> None:
    plan = await read_plan(Source(site_url), "gauge", version="1.0.0", base="none", copy_to=tmp_path)
    assert (plan.base, plan.folder) == ("", tmp_path)
    link = LinkRate(2_000_000, 0.02)
    figures = await play(Rehearsal(plan, link, role="loader", cuts=((0.3, 1.5),)))
    assert (figures.state, figures.route, figures.requests) == ("ACTIVE", "full", 0)
    assert figures.transfer_s >= 1.5 + figures.payload_bytes * 8 / link.bps
    assert figures.goodput_bps < link.bps
    assert figures.wire_bytes == pytest.approx(figures.forecast.wire_bytes, rel=0.06)


def test_a_repository_does_not_choose_where_its_copy_lies(tmp_path: Path) -> None:
    class Anything:
        def find(self, path: str, max_bytes: int) -> tuple[bytes, str] | None:
            return path.encode(), ""

    copying = Copying(Anything(), tmp_path / "copy")
    assert copying.find("metadata/1.root.json", 100) == (b"metadata/1.root.json", "")
    assert (tmp_path / "copy" / "metadata" / "1.root.json").is_file()
    for path in ("metadata/1.../../../evil.json", "../evil.json", str(tmp_path / "evil.json")):
        with pytest.raises(MetadataUntrusted, match="inside"):
            copying.find(path, 100)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


async def test_versions_that_are_not_published_and_folders_that_are_not_there_are_said_by_name(published: Path) -> None:
    with pytest.raises(ObjectMissing, match=r"9\.9\.9.*1\.0\.0, 1\.1\.0, 1\.2\.0"):
        await plan_update(published, "9.9.9")
    with pytest.raises(ConfigInvalid, match="twice"):
        await plan_update(published, "1.1.0", base="1.1.0")
    with pytest.raises(ConfigInvalid, match="nowhere"):
        await plan_update(published.parent / "nowhere", "1.1.0")
    assert not (published.parent / "nowhere").exists()


async def test_a_rehearsal_of_more_than_half_an_hour_has_to_be_asked_for(published: Path) -> None:
    short = Rehearsal(await plan_update(published, "1.0.0", base="none"), FAST)
    require_short(short)
    for long in (replace(short, link=LinkRate(500, 0.1)), replace(short, cuts=((1, 1000), (2000, 900)))):
        with pytest.raises(ConfigInvalid, match="minutes"):
            require_short(long)


def test_what_ends_without_a_verdict_is_the_links_unless_it_says_otherwise() -> None:
    figures = Figures(
        model="gauge",
        base="1.0.0",
        version="1.1.0",
        link_bps=60_000,
        link_rtt_s=1.6,
        tcp_bps=60_000,
        state="DOWNLOADING",
        error=None,
        route="full",
        payload_bytes=90_000,
        wire_bytes=50_000,
        stream_bytes=48_000,
        transfer_s=400.0,
        active_s=400.0,
        goodput_bps=960,
        requests=390,
        failed=0,
        forecast=ForecastFigures(payload_bytes=90_000, wire_bytes=101_000, transfer_s=20.0),
    )
    late = find_error(figures)
    assert late is not None
    assert get_exit_code(late) == LINK
    error = MetadataExpired("expected metadata of today").to_dict()
    assert find_error(msgspec.structs.replace(figures, state="WAITING", error=error)) is MetadataExpired
