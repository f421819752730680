"""The demo detector (195 k parameters, 256x256, stride 8), its training targets, its loss. Torch.

Leaves optimising to `fit.py` and exporting to `graph.py` and the writers.

Rules:
- `features` is the backbone that v1.1 freezes; `predict` is the head that v1.1 trains. Nothing else holds weights.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.spec import CELLS, GRID, PRIOR, make_priors

HEAD = ("head", "cls", "box")  # what v1.1 trains; every other tensor is frozen there
PEOPLE = (0, 1)  # worker, no_helmet
ANCHOR, ANCHOR_OF_PEOPLE = np.array([0.5, 0.5]), np.array([0.15, 0.5])  # down, right, as a share of the box
CLASS_WEIGHT, BOX_WEIGHT = 2.0, 2.0
CHANNELS = (16, 24, 48, 80, 112)
PRIORS = torch.from_numpy(make_priors())


def conv_block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class Residual(nn.Module):
    """x + pointwise(depthwise(x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = conv_block(channels, channels, groups=channels)
        self.pointwise = conv_block(channels, channels, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pointwise(self.depthwise(x))


def stage(inputs: int, outputs: int, residuals: int) -> nn.Sequential:
    """Halves the picture, then refines it."""
    return nn.Sequential(conv_block(inputs, outputs, stride=2), *(Residual(outputs) for _ in range(residuals)))


class Detector(nn.Module):
    """One-prior-per-cell detector: five stages down, two up, a shared head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = CHANNELS
        self.classes = classes
        self.stage1, self.stage2 = stage(3, c1, 0), stage(c1, c2, 1)
        self.stage3, self.stage4, self.stage5 = stage(c2, c3, 2), stage(c3, c4, 2), stage(c4, c5, 1)
        self.lateral5, self.lateral4 = conv_block(c5, c4, kernel=1), conv_block(c4, c3, kernel=1)
        self.merge4, self.merge3 = Residual(c4), Residual(c3)
        self.head = nn.Sequential(Residual(c3), Residual(c3))
        self.cls, self.box = nn.Conv2d(c3, classes, 1), nn.Conv2d(c3, 4, 1)
        nn.init.constant_(self.cls.bias, -4.0)  # rare objects: start from "nothing here"

    def features(self, x: Tensor) -> Tensor:
        """Pictures [n, 3, 256, 256] in 0..1 -> [n, 48, 32, 32]."""
        s3 = self.stage3(self.stage2(self.stage1(x)))
        s4 = self.stage4(s3)
        m4 = self.merge4(s4 + double(self.lateral5(self.stage5(s4))))
        return self.merge3(s3 + double(self.lateral4(m4)))

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features -> class logits [n, CELLS, classes] and box encodings [n, CELLS, 4] (y, x, log h, log w)."""
        shared = self.head(features)
        return flatten_cells(self.cls(shared)), flatten_cells(self.box(shared))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.predict(self.features(x))


def double(x: Tensor) -> Tensor:
    """Nearest-neighbour upsampling by two."""
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def flatten_cells(x: Tensor) -> Tensor:
    """[n, c, GRID, GRID] -> [n, CELLS, c]."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], CELLS, -1)


def decode(encoding: Tensor) -> Tensor:
    """Box encodings [..., CELLS, 4] -> boxes (top, left, bottom, right) in 0..1."""
    centre = encoding[..., :2] * PRIOR + PRIORS[:, :2]
    half = torch.exp(encoding[..., 2:].clamp(-5, 3)) * PRIOR / 2
    return torch.cat([centre - half, centre + half], -1)


def assign_targets(
    boxes: NDArray[np.float32], labels: NDArray[np.int64], classes: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Gives each object the cells around its anchor; the smallest object wins a contested cell.

    The anchor is the centre, but for people the head: helmet or not is then told from what the cell itself sees.
    (With the centre, a network of this size still guessed at helmets after 2,000 iterations.)

    Returns class targets [CELLS, classes], box targets [CELLS, 4] and the mask [CELLS] of cells that hold an object.
    """
    priors, wanted = make_priors(), np.zeros((CELLS, classes), np.float32)
    box_targets, mask = np.zeros((CELLS, 4), np.float32), np.zeros(CELLS, bool)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for i in np.argsort(areas)[::-1]:
        extent = boxes[i, 2:] - boxes[i, :2]
        anchor = boxes[i, :2] + extent * (ANCHOR_OF_PEOPLE if labels[i] in PEOPLE else ANCHOR)
        reach = np.clip(extent * 0.3, 0.6 / GRID, 1.6 / GRID)
        cells = (np.abs(priors[:, :2] - anchor) <= reach).all(1)
        wanted[cells], box_targets[cells], mask[cells] = 0, boxes[i], True
        wanted[cells, labels[i]] = 1
    return wanted, box_targets, mask


def detection_loss(logits: Tensor, encoding: Tensor, wanted: Tensor, boxes: Tensor, mask: Tensor) -> Tensor:
    """Focal loss (Lin et al. 2017, gamma 2) on classes, GIoU (Rezatofighi et al. 2019) and smooth L1 on boxes."""
    p = torch.sigmoid(logits)
    entropy = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    p_true = p * wanted + (1 - p) * (1 - wanted)
    class_loss = ((1 - p_true) ** 2 * entropy).sum() / mask.sum().clamp(min=1)
    if not mask.any():
        return CLASS_WEIGHT * class_loss
    priors, truth = PRIORS[None].expand(len(boxes), -1, -1)[mask], boxes[mask]
    shift = ((truth[:, :2] + truth[:, 2:]) / 2 - priors[:, :2]) / PRIOR
    scale = torch.log((truth[:, 2:] - truth[:, :2]).clamp(min=1e-3) / PRIOR)
    # Not optional: GIoU alone drives log sizes under the clamp, where its gradient is 0 and boxes never come back.
    l1 = functional.smooth_l1_loss(encoding[mask], torch.cat([shift, scale], 1), beta=0.1)
    return CLASS_WEIGHT * class_loss + BOX_WEIGHT * ((1 - giou(decode(encoding)[mask], truth)).mean() + l1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union of paired boxes [n, 4]."""

    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp(min=0).prod(1)

    inner = area(torch.max(a[:, :2], b[:, :2]), torch.min(a[:, 2:], b[:, 2:]))
    union = area(a[:, :2], a[:, 2:]) + area(b[:, :2], b[:, 2:]) - inner + 1e-7
    outer = area(torch.min(a[:, :2], b[:, :2]), torch.max(a[:, 2:], b[:, 2:])) + 1e-7
    return inner / union - (outer - union) / outer
