"""The demo detector's net, trained briefly, folded with two sets of batch norm statistics. Torch, one thread.

The committed detectors hold no batch norm any more (it is folded), so that a net of the same build is trained here.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from models.spec import make_detector_card
from models.train import onnx_writer
from models.train.dataset import make_scene_set
from models.train.export import fold_detector
from models.train.fit import Recipe, fit, to_tensor
from models.train.net import Detector

RECIPE = Recipe(iterations=80, learning_rate=2e-3)
SCENES, DRIFT_BATCHES = 320, 6


def write_detector(nets: Path, *, drifted: bool) -> bytes:
    """The detector as ONNX, before or after its statistics moved."""
    torch.set_num_threads(1)
    net = _train(nets)
    if drifted:
        net = _drift(net)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "detector.onnx"
        onnx_writer.write_detector(path, list(fold_detector(net.eval())), make_detector_card("1.2.0"))
        return path.read_bytes()


def _train(nets: Path) -> Detector:
    kept, net = nets / "detector.pt", Detector(6)
    if not kept.exists():
        nets.mkdir(parents=True, exist_ok=True)
        print(f"  detector: {RECIPE.iterations} steps", flush=True)
        torch.manual_seed(0)
        scenes, part = make_scene_set("train-6", SCENES), kept.with_suffix(".part")
        net = fit(Detector(6), scenes, RECIPE, validate=scenes, part=part)
        torch.save(net.state_dict(), part)
        part.replace(kept)
    net.load_state_dict(torch.load(kept))
    return net


@torch.no_grad()
def _drift(net: Detector) -> Detector:
    """A copy that has seen some more pictures of another kind in train mode: only its statistics differ."""
    moved, pictures = copy.deepcopy(net).train(), to_tensor(make_scene_set("test", 16 * DRIFT_BATCHES).pixels)
    for batch in torch.split(pictures, 16):
        moved(batch * 0.8)
    return moved
