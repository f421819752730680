"""What the swap bench swaps: models in pairs of equal files, slow ones, and versions that must be refused.

What this file leaves to others: how slow models are made (`slow_models.py`), what is measured (`bench_swap.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import helper

from .peers import ROOT
from .servers import Site
from .slow_models import make_slow_litert, make_slow_onnx, rename_input

P99_MAX, P99_SLOW_MAX = 1.2, 1.3
SLOW_LINKS = {"onnx": 2, "litert": 72}
"""Over a second of CPU for the whole load on one core of a usual machine; the bench checks it."""
_SSD = "detection/ssd_mobilenet_v1_1_metadata_1.tflite"
ONNX, LITERT, SLOW_ONNX, SLOW_LITERT = "ONNX", "LiteRT", "ONNX, slow to load", "LiteRT, slow to load"
CORRUPT, FAILING = "a corrupt new version", "a new version that fails to run"


@dataclass(frozen=True, slots=True)
class Scene:
    """Files taken in turn, the labels that go with them, and what is asked. `fails`: every other file is refused."""

    name: str
    site: Site | None = None
    files: tuple[Path, ...] = ()
    labels: Path | None = None
    p99_max: float = P99_MAX
    fails: bool = False
    in_memory: bool = False

    def get_bounds(self) -> tuple[str, float, bool]:
        """Name, bound of the p99, whether every other version must fail."""
        return self.name, self.p99_max, self.fails


def make_scenes(site: Site | None) -> list[Scene]:
    """All scenes, with their files below the site's folder; without a site only what is asked of them."""
    files: dict[str, tuple[Path, ...]] = _make_files(site) if site is not None else {}
    labels = site.labels if site is not None else None
    return [
        Scene(ONNX, site, files.get(ONNX, ()), labels, in_memory=True),
        Scene(LITERT, site, files.get(LITERT, ()), in_memory=True),
        Scene(SLOW_ONNX, site, files.get(SLOW_ONNX, ()), labels, P99_SLOW_MAX),
        Scene(SLOW_LITERT, site, files.get(SLOW_LITERT, ()), None, P99_SLOW_MAX),
        Scene(CORRUPT, site, files.get(CORRUPT, ()), labels, fails=True),
        Scene(FAILING, site, files.get(FAILING, ()), labels, fails=True),
    ]


def _make_files(site: Site) -> dict[str, tuple[Path, ...]]:
    model, ssd = site.model.read_bytes(), (ROOT.parent / "shared" / "models" / _SSD).read_bytes()
    good = _write(site.folder / "good", "model.onnx", model)
    return {
        ONNX: _write_twice(site.folder / "onnx", "model.onnx", model),
        LITERT: _write_twice(site.folder / "litert", "model.tflite", ssd),
        SLOW_ONNX: _write_twice(site.folder / "slow", "model.onnx", make_slow_onnx(model, SLOW_LINKS["onnx"])),
        SLOW_LITERT: _write_twice(site.folder / "slow", "model.tflite", make_slow_litert(ssd, SLOW_LINKS["litert"])),
        CORRUPT: (good, _write(site.folder / "corrupt", "model.onnx", model[: len(model) // 2])),
        FAILING: (good, _write(site.folder / "failing", "model.onnx", _make_failing(model))),
    }


def _write_twice(folder: Path, name: str, data: bytes) -> tuple[Path, ...]:
    """Two files, so that each swap loads anew instead of sharing the worker."""
    return tuple(_write(folder / str(number), name, data) for number in range(2))


def _write(folder: Path, name: str, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(data)
    return path


def _make_failing(model: bytes) -> bytes:
    """Loads, and fails in the engine with the first picture: it reads rows that the picture does not have."""
    net = onnx.load_from_string(model)
    picture = net.graph.input[0]
    rows = picture.type.tensor_type.shape.dim[2].dim_value
    rename_input(net, "missing rows")
    net.graph.initializer.append(helper.make_tensor("far", onnx.TensorProto.INT64, [rows], [10**6] * rows))
    net.graph.node.append(helper.make_node("Gather", [picture.name, "far"], ["missing rows"], axis=2))
    return bytes(net.SerializeToString())
