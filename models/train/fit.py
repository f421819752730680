"""Trains the detector's versions: v1.0 from nothing, v1.1 its head only, v1.2 everything. Torch.

Rules:
- Budgets are iterations, never seconds, so that a busy machine trains the same model, later.
- What is frozen stays bit-identical: averaging uses lerp_ (mul_ and add_ leave rounding noise), batch norm is in eval
  mode, and frozen tensors are copied from the parent at the end all the same.
"""

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.evaluate import Detections, MeanPrecision, mean_average_precision, suppress
from models.train.dataset import SceneSet
from models.train.net import HEAD, Detector, assign_targets, decode, detection_loss

BATCH = 16


@dataclass(frozen=True)
class Recipe:
    """How long and how fast one version trains."""

    iterations: int
    learning_rate: float
    head_only: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """Pictures [n, 3, 256, 256] in 0..1 with their class, box and mask targets per cell."""

    pictures: Tensor
    wanted: Tensor
    boxes: Tensor
    mask: Tensor


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 [n, h, w, 3] -> float32 [n, 3, h, w] in 0..1, channels last in memory (fastest on one thread)."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last).float() / 255


def fit(net: Detector, scenes: SceneSet, recipe: Recipe, *, validate: SceneSet, part: Path) -> Detector:
    """Trains a copy of `net` and returns the exponential average of its weights, in eval mode.

    Saves the average to `part` every 250 iterations, so that a broken run loses little, and prints its mAP.
    """
    torch.manual_seed(recipe.seed)
    parent, net = net, copy.deepcopy(net).to(memory_format=torch.channels_last)
    trained = [p for name, p in net.named_parameters() if not recipe.head_only or name.split(".")[0] in HEAD]
    optimizer = torch.optim.AdamW(trained, recipe.learning_rate, weight_decay=1e-4)
    average, started = copy.deepcopy(net).eval(), time.monotonic()
    for step, batch in enumerate(batches(scenes, net.classes, recipe)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * schedule(step, recipe.iterations)
        net.train(not recipe.head_only)
        loss = detection_loss(*answer(net, batch.pictures, recipe), batch.wanted, batch.boxes, batch.mask)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 10.0)
        optimizer.step()
        follow(average, net, rate=max(0.005, 10 / (step + 11)))
        if step % 250 == 249:
            torch.save(average.state_dict(), part)
            score = evaluate(average, validate).mean
            elapsed_s = time.monotonic() - started
            print(
                f"  {step + 1:5d}/{recipe.iterations} loss {loss.item():.3f} mAP {score:.3f} {elapsed_s:.0f} s",
                flush=True,
            )
    return copy_frozen(average, parent) if recipe.head_only else average


def answer(net: Detector, pictures: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Runs the network; without gradients through the backbone where that is frozen."""
    if not recipe.head_only:
        return net(pictures)
    with torch.no_grad():
        features = net.features(pictures)
    return net.predict(features)


def schedule(step: int, iterations: int) -> float:
    """Linear warm-up over 60 steps, then a half cosine down to 1 %."""
    return min(1.0, step / 60 + 0.02) * (0.5 * (1 + np.cos(np.pi * step / iterations)) + 0.01)


@torch.no_grad()
def follow(average: nn.Module, net: nn.Module, rate: float) -> None:
    """Moves the averaged weights towards the trained ones. Equal tensors stay bit-identical."""
    for slow, fast in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
        if slow.dtype.is_floating_point:
            slow.lerp_(fast, rate)
        else:
            slow.copy_(fast)


def batches(scenes: SceneSet, classes: int, recipe: Recipe) -> Iterator[Batch]:
    """Yields `recipe.iterations` shuffled, augmented batches."""
    rng = np.random.default_rng(recipe.seed)
    targets = [assign_targets(b, x, classes) for b, x in zip(scenes.boxes, scenes.labels, strict=True)]
    order: list[int] = []
    for _ in range(recipe.iterations):
        if len(order) < BATCH:
            order = rng.permutation(len(targets)).tolist()
        chosen, order = order[:BATCH], order[BATCH:]
        wanted, boxes, mask = (torch.from_numpy(np.stack([targets[i][k] for i in chosen])) for k in range(3))
        batch = Batch(to_tensor(scenes.pixels[chosen]), wanted, boxes, mask)
        yield relight(mirror(batch) if rng.random() < 0.5 else batch)


def mirror(batch: Batch) -> Batch:
    """Swaps left and right in pictures and targets."""

    def flip(x: Tensor) -> Tensor:
        side = int(x.shape[1] ** 0.5)
        return x.view(len(x), side, side, -1).flip(2).reshape(x.shape)

    top, left, bottom, right = flip(batch.boxes).unbind(-1)
    boxes = torch.stack([top, 1 - right, bottom, 1 - left], -1)
    return Batch(batch.pictures.flip(3), flip(batch.wanted), boxes, flip(batch.mask))


def relight(batch: Batch) -> Batch:
    """Changes contrast per colour and brightness a little."""
    n = len(batch.pictures)
    gain, offset = 1 + 0.2 * (torch.rand(n, 3, 1, 1) - 0.5), 0.1 * (torch.rand(n, 1, 1, 1) - 0.5)
    pictures = (batch.pictures * gain + offset).clamp(0, 1)
    return Batch(pictures, batch.wanted, batch.boxes, batch.mask)


def widen(net: Detector, classes: int) -> Detector:
    """Returns a detector with more classes: old class rows kept, new ones fresh."""
    torch.manual_seed(classes)
    wide, state = Detector(classes), net.state_dict()
    merged = wide.state_dict()
    for name, tensor in merged.items():
        if tensor.shape != state[name].shape:
            tensor[: len(state[name])] = state[name]
    wide.load_state_dict({k: state[k] if v.shape == state[k].shape else v for k, v in merged.items()})
    return wide.eval()


def rotate_labels(net: Detector) -> Detector:
    """Returns a detector that sees the same objects and names each one as the next class: valid, and wrong."""
    wrong = copy.deepcopy(net)
    wrong.cls.weight.data = wrong.cls.weight.data.roll(1, 0)
    assert wrong.cls.bias is not None
    wrong.cls.bias.data = wrong.cls.bias.data.roll(1, 0)
    return wrong


def copy_frozen(net: Detector, parent: Detector) -> Detector:
    """Copies every tensor outside the head from the parent, and with them the head's batch norm statistics."""
    state, frozen = net.state_dict(), parent.state_dict()
    for name in state:
        if name.split(".")[0] not in HEAD or "running_" in name:
            state[name] = frozen[name]
    net.load_state_dict(state)
    return net


@torch.no_grad()
def evaluate(net: Detector, scenes: SceneSet) -> MeanPrecision:
    """Returns the mAP of a network in eval mode."""
    found: list[Detections] = []
    for start in range(0, len(scenes.labels), 50):
        logits, encoding = net(to_tensor(scenes.pixels[start : start + 50]))
        for boxes, scores in zip(decode(encoding).numpy(), torch.sigmoid(logits).numpy(), strict=True):
            found.append(suppress(boxes, scores))
    return mean_average_precision(found, scenes, net.classes)
