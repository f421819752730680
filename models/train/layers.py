"""A network as plain layers with numpy weights: what both writers read, so that neither knows torch.

Rules:
- Layers stand in order of computing; each names its inputs; the picture is named `INPUT`.
- Batch norm is folded into the convolutions (in float64, so that equal tensors fold to equal bits).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

INPUT = "image"
Floats = NDArray[np.float32]
Ranges = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Conv:
    """Convolution with `weight` [out, in, k, k] (depthwise: [c, 1, k, k]), zero padding k // 2, perhaps ReLU6."""

    name: str
    source: str
    weight: Floats
    bias: Floats
    stride: int = 1
    relu6: bool = False
    depthwise: bool = False


@dataclass(frozen=True)
class Add:
    """Sum of two equal shapes."""

    name: str
    left: str
    right: str


@dataclass(frozen=True)
class Upsample:
    """Nearest neighbour, twice the size."""

    name: str
    source: str


@dataclass(frozen=True)
class Mean:
    """Mean over the picture: [n, c, h, w] -> [n, c, 1, 1]."""

    name: str
    source: str


Layer = Conv | Add | Upsample | Mean


def get_chain(net: nn.Module, name: str) -> nn.Sequential:
    """Returns the named part of a network."""
    chain = net.get_submodule(name)
    assert isinstance(chain, nn.Sequential)
    return chain


def fold_block(name: str, source: str, block: nn.Sequential) -> Conv:
    """Folds convolution, batch norm and ReLU6 into one layer."""
    conv, norm = block[0], block[1]
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None
    assert norm.running_mean is not None
    gain = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = (conv.weight.detach().double() * gain[:, None, None, None]).float().numpy()
    bias = (norm.bias.detach().double() - norm.running_mean.double() * gain).float().numpy()
    return Conv(name, source, weight, bias, conv.stride[0], relu6=True, depthwise=conv.groups > 1)


def fold_residual(name: str, source: str, block: nn.Module) -> Iterator[Layer]:
    """Yields depthwise, pointwise, sum; the sum bears `name`."""
    yield fold_block(f"{name}.depthwise", source, get_chain(block, "depthwise"))
    yield fold_block(f"{name}.pointwise", f"{name}.depthwise", get_chain(block, "pointwise"))
    yield Add(name, source, f"{name}.pointwise")


def fold_stage(name: str, source: str, blocks: nn.Sequential) -> Iterator[Layer]:
    """Yields the layers of a chain; the last one bears `name`."""
    last = len(blocks) - 1
    for i, block in enumerate(blocks):
        target = name if i == last else f"{name}.{i}"
        if isinstance(block, nn.Sequential):
            yield fold_block(target, source, block)
        else:
            yield from fold_residual(target, source, block)
        source = target


def fold_plain(name: str, source: str, conv: nn.Conv2d) -> Conv:
    """A 1x1 convolution without norm or activation."""
    assert conv.bias is not None
    return Conv(name, source, conv.weight.detach().numpy(), conv.bias.detach().numpy())


def run_layer(layer: Layer, values: dict[str, Tensor]) -> Tensor:
    """Computes one layer in torch: the reference for calibration and for agreement."""
    match layer:
        case Conv(_, source, weight, bias, stride):
            x, groups = values[source], len(weight) if layer.depthwise else 1
            pad = weight.shape[2] // 2
            y = functional.conv2d(x, torch.from_numpy(weight), torch.from_numpy(bias), stride, pad, groups=groups)
            return y.clamp(0, 6) if layer.relu6 else y
        case Add(_, left, right):
            return values[left] + values[right]
        case Upsample(_, source):
            return functional.interpolate(values[source], scale_factor=2.0, mode="nearest")
        case Mean(_, source):
            return values[source].mean((2, 3), keepdim=True)


@torch.no_grad()
def calibrate(layers: list[Layer], pictures: Tensor) -> Ranges:
    """Returns the smallest and largest value of every layer over pictures [n, 3, h, w], for int8."""
    ranges: Ranges = {INPUT: (0.0, 1.0)}
    for picture in pictures.split(10):
        values = {INPUT: picture}
        for layer in layers:
            values[layer.name] = run_layer(layer, values)
            low, high = values[layer.name].min().item(), values[layer.name].max().item()
            known = ranges.get(layer.name, (low, high))
            ranges[layer.name] = min(known[0], low), max(known[1], high)
    return ranges
