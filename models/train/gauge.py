"""The gauge-state classifier: its network (44 k parameters, 96x96), its training, its layers. Torch.

Leaves the pictures to `gauge_pictures.py`.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.spec import GAUGE_LABELS
from models.train.dataset import CACHE
from models.train.fit import schedule, to_tensor
from models.train.gauge_pictures import GaugeSet, make_gauge_set
from models.train.layers import INPUT, Conv, Layer, Mean, fold_stage, get_chain
from models.train.net import stage

CHANNELS = (16, 24, 40, 64)
TRAIN_PICTURES, ITERATIONS, BATCH = 4000, 900, 32


class GaugeNet(nn.Module):
    """Four stages down, mean, one linear layer (as a 1x1 convolution)."""

    def __init__(self) -> None:
        super().__init__()
        c1, c2, c3, c4 = CHANNELS
        self.stage1, self.stage2 = stage(3, c1, 0), stage(c1, c2, 1)
        self.stage3, self.stage4 = stage(c2, c3, 1), stage(c3, c4, 1)
        self.state = nn.Conv2d(c4, len(GAUGE_LABELS), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures [n, 3, 96, 96] in 0..1 -> logits [n, 4]."""
        features = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        return self.state(features.mean((2, 3), keepdim=True)).flatten(1)


def train_gauge() -> GaugeNet:
    """Returns the trained classifier in eval mode, from its checkpoint if there is one."""
    path, net = CACHE / "gauge-1.0.0.pt", GaugeNet()
    if not path.exists():
        print(f"gauge 1.0.0: {ITERATIONS} iterations", flush=True)
        torch.save(_fit(make_gauge_set("train", TRAIN_PICTURES)).state_dict(), path)
    net.load_state_dict(torch.load(path))
    return net.eval()


def _fit(pictures: GaugeSet) -> GaugeNet:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rng, net = np.random.default_rng(0), GaugeNet().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for step in range(ITERATIONS):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * schedule(step, ITERATIONS)
        chosen = rng.integers(0, len(pictures.states), BATCH)
        states = torch.from_numpy(pictures.states[chosen])
        loss = functional.cross_entropy(net(to_tensor(pictures.pixels[chosen])), states)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            print(f"  {step + 1:5d}/{ITERATIONS} loss {loss.item():.3f}", flush=True)
    return net


def fold_gauge(net: GaugeNet) -> list[Layer]:
    """Returns the classifier as layers; the last one is `state` [1, 4, 1, 1]."""
    return list(_fold(net))


def _fold(net: GaugeNet) -> Iterator[Layer]:
    source = INPUT
    for name in ("stage1", "stage2", "stage3", "stage4"):
        yield from fold_stage(name, source, get_chain(net, name))
        source = name
    yield Mean("mean", source)
    assert net.state.bias is not None
    yield Conv("state", "mean", net.state.weight.detach().numpy(), net.state.bias.detach().numpy())
