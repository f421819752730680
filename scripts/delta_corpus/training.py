"""Trains the nets of `runs.py` and writes them as model files. Torch, one thread.

Rules:
- A net that was trained is kept in the corpus's folder of nets and read from there the next time.
- The same seeds give the same files on one machine; sums of floats may differ on another.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from models.spec import GAUGE_LABELS, GAUGE_PX, Card
from models.train import onnx_writer, tflite_models
from models.train.fit import schedule, to_tensor
from models.train.gauge import GaugeNet, fold_gauge
from models.train.gauge_pictures import make_gauge_set
from models.train.layers import Layer, calibrate
from models.train.tflite_writer import Mode
from scripts.delta_corpus.nets import TextureNet, make_plain_net, make_thin_net
from scripts.delta_corpus.runs import BATCH, RUNS, Run
from scripts.delta_corpus.textures import SIDE_PX, draw_textures
from torch import Tensor, nn
from torch.nn import functional

Batches = Iterator[tuple[Tensor, Tensor]]
MAKERS: dict[str, Callable[[int], TextureNet]] = {"plain": make_plain_net, "thin": make_thin_net}
WEIGHT_DECAY = {"adamw": 1e-2, "momentum": 1e-4}
GAUGE_PICTURES = 1000
CALIBRATION_PICTURES = 60


def write_run(name: str, form: str, nets: Path) -> bytes:
    """The model file of a run as "onnx", or as LiteRT in the mode "fp32", "fp16" or "int8"."""
    run = RUNS[name]
    net, card = train(name, nets), make_card(run)
    layers = net.fold() if isinstance(net, TextureNet) else fold_gauge(net)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        if form == "onnx":
            onnx_writer.write_classifier(path, layers, card)
        else:
            write_tflite(path, layers, card, mode=_read_mode(form), run=run)
        return path.read_bytes()


def write_tflite(path: Path, layers: list[Layer], card: Card, *, mode: Mode, run: Run) -> None:
    """Writes LiteRT, calibrated on pictures of the run's own site."""
    pictures, _ = next(draw_batches(run, seed=900, count=CALIBRATION_PICTURES))
    tflite_models.write_classifier(path, layers, card, mode=mode, ranges=calibrate(layers, pictures))


def make_card(run: Run) -> Card:
    """What the file says about itself; a run from a parent is version 2."""
    version = "2.0.0" if run.parent else "1.0.0"
    if run.net == "gauge":
        return Card("gauge", "1.0.0", "classification", "classifier", GAUGE_PX, GAUGE_LABELS)
    labels = [f"texture {i}" for i in range(run.classes)]
    return Card(f"{run.net} texture net", version, "classification", "classifier", SIDE_PX, labels)


def train(name: str, nets: Path) -> TextureNet | GaugeNet:
    """The net of a run in eval mode, trained unless it is kept in `nets`."""
    torch.set_num_threads(1)
    run, kept = RUNS[name], nets / f"{name}.pt"
    net = make_net(run)
    if kept.exists():
        net.load_state_dict(torch.load(kept))
        return net.eval()
    if run.parent:
        take_weights(net, train(run.parent, nets))
    nets.mkdir(parents=True, exist_ok=True)
    losses = fit(net, run)
    print(f"  {name}: {run.steps} steps of {run.optimizer}, loss {losses[0]:.3f} -> {losses[-1]:.3f}", flush=True)
    part = kept.with_suffix(".part")
    torch.save(net.state_dict(), part)
    part.replace(kept)
    return net.eval()


def make_net(run: Run) -> TextureNet | GaugeNet:
    """A fresh net from the run's seed."""
    torch.manual_seed(run.seed)
    return GaugeNet() if run.net == "gauge" else MAKERS[run.net](run.classes)


def take_weights(net: nn.Module, parent: nn.Module) -> None:
    """Copies the parent's weights; rows that a wider head has more stay fresh."""
    merged, known = net.state_dict(), parent.state_dict()
    for name, tensor in merged.items():
        old = known[name]
        if tensor.ndim:
            tensor[: len(old)] = old
        else:
            tensor.copy_(old)
    net.load_state_dict(merged)


def fit(net: nn.Module, run: Run) -> list[float]:
    """Trains in place; returns the mean loss of the first and of the last ten steps."""
    optimizer, losses = make_optimizer(net, run), []
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    set_modes(net, run)
    for step, (pictures, labels) in zip(range(run.steps), draw_batches(run, seed=run.seed, count=BATCH), strict=False):
        with torch.set_grad_enabled(optimizer is not None):
            loss = functional.cross_entropy(net(pictures), labels)
        losses.append(loss.item())
        if optimizer is not None:
            optimizer.param_groups[0]["lr"] = run.rate * schedule(step, run.steps) if run.steps > 60 else run.rate
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return [float(np.mean(losses[:10])), float(np.mean(losses[-10:]))]


def make_optimizer(net: nn.Module, run: Run) -> torch.optim.Optimizer | None:
    """The optimizer over what the run trains; gradients of everything else are off."""
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(is_trained(name, run))
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    decay = WEIGHT_DECAY.get(run.optimizer, 0.0)
    match run.optimizer:
        case "adamw":
            return torch.optim.AdamW(trained, run.rate, weight_decay=decay)
        case "sgd" | "momentum":
            momentum = 0.9 if run.optimizer == "momentum" else 0.0
            return torch.optim.SGD(trained, run.rate, momentum=momentum, weight_decay=decay)
        case "statistics":
            return None


def is_trained(name: str, run: Run) -> bool:
    """Whether a parameter belongs to the parts that the run trains."""
    return not run.trained or name.split(".", maxsplit=1)[0] in run.trained


def set_modes(net: nn.Module, run: Run) -> None:
    """Train mode, but batch norm that must stay as it is in eval mode."""
    net.train()
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d) and not (run.norm_moves and is_trained(name, run)):
            module.eval()


def draw_batches(run: Run, *, seed: int, count: int) -> Batches:
    """Yields pictures and classes without end."""
    rng = np.random.default_rng([seed, run.classes])
    if run.net == "gauge":
        known = make_gauge_set("train", GAUGE_PICTURES)
        while True:
            chosen = rng.integers(0, GAUGE_PICTURES, count)
            yield to_tensor(known.pixels[chosen]), torch.from_numpy(known.states[chosen])
    while True:
        pictures, labels = draw_textures(rng, count, classes=run.classes, worn=run.worn)
        yield torch.from_numpy(pictures).contiguous(memory_format=torch.channels_last), torch.from_numpy(labels)


def _read_mode(form: str) -> Mode:
    modes: dict[str, Mode] = {"fp32": "fp32", "fp16": "fp16", "int8": "int8"}
    return modes[form]
