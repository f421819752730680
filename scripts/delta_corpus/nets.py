"""Two classifiers of about two million weights, and how they become the layers that the writers read. Torch.

`PlainNet` is built of dense 3x3 convolutions with shortcuts (He et al. 2015), `ThinNet` of inverted residuals with
depthwise convolutions (Sandler et al. 2018). Both take textures [n, 3, 32, 32].

Rules:
- Everything but `head` is the backbone; stages are named `stage0`, `stage1`, ... from the picture on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from models.train.layers import INPUT, Add, Conv, Layer, Mean, fold_block, get_chain
from models.train.net import conv_block
from torch import Tensor, nn

PLAIN_WIDTHS = ((64, 1), (128, 2), (256, 1))  # channels, shortcuts
THIN_WIDTHS = ((32, 2), (64, 3), (112, 3), (160, 5))  # channels, blocks
STEM, EXPANSION, LAST = 32, 6, 640


class Shortcut(nn.Module):
    """x + second(first(x)), both 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = conv_block(channels, channels), conv_block(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))  # type: ignore[no-any-return]

    def fold(self, name: str, source: str) -> Iterator[Layer]:
        """Yields the layers; the last one bears `name`."""
        yield fold_block(f"{name}.first", source, self.first)
        yield fold_block(f"{name}.second", f"{name}.first", self.second)
        yield Add(name, source, f"{name}.second")


class Inverted(nn.Module):
    """Widen, depthwise 3x3, narrow without activation; added to x where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = inputs * EXPANSION
        self.widen, self.adds = conv_block(inputs, wide, kernel=1), stride == 1 and inputs == outputs
        self.depthwise = conv_block(wide, wide, stride=stride, groups=wide)
        self.narrow = nn.Sequential(nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.narrow(self.depthwise(self.widen(x)))
        return x + y if self.adds else y

    def fold(self, name: str, source: str) -> Iterator[Layer]:
        """Yields the layers; the last one bears `name`."""
        yield fold_block(f"{name}.widen", source, self.widen)
        yield fold_block(f"{name}.depthwise", f"{name}.widen", self.depthwise)
        narrow = f"{name}.narrow" if self.adds else name
        yield replace(fold_block(narrow, f"{name}.depthwise", self.narrow), relu6=False)
        if self.adds:
            yield Add(name, source, narrow)


class TextureNet(nn.Module):
    """Stages down, mean, one linear layer (as a 1x1 convolution)."""

    def __init__(self, stages: list[nn.Sequential], width: int, classes: int) -> None:
        super().__init__()
        self.stages = [f"stage{i}" for i in range(len(stages))]
        for name, stage in zip(self.stages, stages, strict=True):
            self.add_module(name, stage)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Textures [n, 3, 32, 32] -> logits [n, classes]."""
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.head(x.mean((2, 3), keepdim=True)).flatten(1)  # type: ignore[no-any-return]

    def fold(self) -> list[Layer]:
        """The net as layers; the last one is `head` [1, classes, 1, 1]."""
        layers, source = list[Layer](), INPUT
        for name in self.stages:
            for i, block in enumerate(get_chain(self, name)):
                target = f"{name}.{i}"
                layers += _fold_part(target, source, block)
                source = target
        assert self.head.bias is not None
        weight, bias = self.head.weight.detach().numpy(), self.head.bias.detach().numpy()
        return [*layers, Mean("mean", source), Conv("head", "mean", weight, bias)]


def make_plain_net(classes: int) -> TextureNet:
    """Dense 3x3 convolutions."""
    stages, inputs = [nn.Sequential(conv_block(3, STEM, stride=2))], STEM
    for width, shortcuts in PLAIN_WIDTHS:
        blocks = (Shortcut(width) for _ in range(shortcuts))
        stages.append(nn.Sequential(conv_block(inputs, width, stride=2), *blocks))
        inputs = width
    return TextureNet(stages, inputs, classes)


def make_thin_net(classes: int) -> TextureNet:
    """Depthwise and 1x1 convolutions."""
    stages, inputs = [nn.Sequential(conv_block(3, STEM, stride=2))], STEM
    for width, blocks in THIN_WIDTHS:
        first = Inverted(inputs, width, 1 if width == STEM else 2)
        stages.append(nn.Sequential(first, *(Inverted(width, width, 1) for _ in range(blocks - 1))))
        inputs = width
    stages.append(nn.Sequential(conv_block(inputs, LAST, kernel=1)))
    return TextureNet(stages, LAST, classes)


def count_weights(net: nn.Module) -> int:
    """Trained numbers in a net."""
    return sum(p.numel() for p in net.parameters())


def _fold_part(name: str, source: str, block: nn.Module) -> Iterator[Layer]:
    if isinstance(block, Shortcut | Inverted):
        yield from block.fold(name, source)
    else:
        assert isinstance(block, nn.Sequential)
        yield fold_block(name, source, block)
