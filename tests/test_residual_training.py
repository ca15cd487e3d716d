"""Residual blocks trained in tiles against their modules one by one."""

import copy

import pytest
import torch
from torch import nn

from redimnet2_lobes.models import residual_training, tiles
from redimnet2_lobes.models.residual_training import residual_block


class Block(nn.Module):
    """Modules of a residual block, one after the other."""

    def __init__(self, channels, momentum=0.1):
        super().__init__()
        for i in (1, 2):
            depthwise = nn.Conv2d(
                channels, channels, 3, 1, 1, groups=channels, bias=False
            )
            self.add_module(f"depthwise_{i}", depthwise)
            self.add_module(f"pointwise_{i}", nn.Conv2d(channels, channels, 1))
        self.norm_1 = nn.BatchNorm2d(channels, momentum=momentum)
        self.norm_2 = nn.BatchNorm2d(channels, momentum=momentum)
        for norm in (self.norm_1, self.norm_2):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x):
        y = torch.relu(self.pointwise_1(self.depthwise_1(x)))
        y = self.norm_1(y)
        y = self.norm_2(self.pointwise_2(self.depthwise_2(y)))
        return torch.relu(y + x)


def passes(function, block, x, gradient):
    """Output, gradients and statistics of one forward and backward pass."""
    block.load_state_dict(
        {
            name: value if "weight" in name or "bias" in name else value * 0 + 2
            for name, value in block.state_dict().items()
        }
    )
    block.zero_grad()
    x = x.clone().requires_grad_()
    y = function(x)
    y.backward(gradient)
    return {
        "y": y.detach(),
        "x": x.grad,
        **{name: value.grad for name, value in block.named_parameters()},
        **{name: value.clone() for name, value in block.named_buffers()},
    }


def compare(block, x):
    """Compares with the modules in float64, of which float32 may stray."""
    gradient = torch.randn_like(x)
    before = x.clone(), gradient.clone()
    precise = copy.deepcopy(block).double()
    expected = passes(precise, precise, x.double(), gradient.double())
    tiled = passes(lambda x: residual_block(x, block), block, x, gradient)
    assert torch.equal(x, before[0])
    assert torch.equal(gradient, before[1])
    for name, value in expected.items():
        # In exact arithmetic, that of a bias before BatchNorm is 0.
        scale = expected["norm_2.bias"] if name == "pointwise_2.bias" else value
        error = (tiled[name] - value).abs().max() / scale.abs().max()
        assert error < 1e-5, (name, error)


def channels_last(*shape, **options):
    x = torch.randn(shape, **options)
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "shape", [(5, 24, 12, 36), (4, 96, 11, 9), (3, 7, 5, 13), (2, 600, 3, 2)]
)
@pytest.mark.parametrize("utterances", [1, 2, 100])
def test_same_as_modules(monkeypatch, shape, utterances):
    torch.manual_seed(0)
    x = channels_last(*shape)
    monkeypatch.setattr(tiles, "TILE_BYTES", 4 * x[0].numel() * utterances)
    assert len(tiles.utterances(x)) == -(-shape[0] // utterances)
    compare(Block(shape[1]), x)


def test_large_mean():
    torch.manual_seed(0)
    x = 300 + 0.1 * channels_last(3, 8, 50, 72)
    statistics = residual_training._Statistics(nn.BatchNorm2d(8))
    for tile in x.split([2, 1]):
        statistics.add(residual_training._rows(tile))
    mean, inverse = statistics.finish()
    variance, expected = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), expected, rtol=1e-6, atol=0)
    inverse = inverse.double().pow(-2) - 1e-5
    # Squares of the mean, subtracted, would leave nothing of the variance. Sums
    # in float32 leave up to 3e-5 of it, by the number of threads.
    torch.testing.assert_close(inverse, variance, rtol=1e-4, atol=0)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_momentum(momentum):
    torch.manual_seed(0)
    blocks = [Block(3, momentum).double() for _ in range(2)]
    blocks[1].load_state_dict(blocks[0].state_dict())
    for _ in range(3):
        x = torch.randn(2, 3, 4, 6).double()
        blocks[0](x)
        residual_block(x, blocks[1])
    torch.testing.assert_close(*(block.state_dict() for block in blocks))


def test_memory_formats():
    torch.manual_seed(0)
    block = Block(4)
    x = channels_last(2, 4, 5, 6)
    expected = residual_block(x, block)
    torch.testing.assert_close(residual_block(x.contiguous(), block), expected)
    # The gradient of a sum is one number, expanded.
    gradients = []
    for function in (block, lambda x: residual_block(x, block)):
        leaf = x.clone().requires_grad_()
        function(leaf).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_derivatives(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(tiles, "TILE_BYTES", 1)
    block = Block(2).double()
    x = channels_last(3, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in block.named_parameters()]

    def function(x, *parameters):
        replaced = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(_Tiled(block), replaced, (x,))

    class _Tiled(nn.Module):
        def __init__(self, block):
            super().__init__()
            for name, module in block.named_children():
                self.add_module(name, module)

        def forward(self, x):
            return residual_block(x, self)

    inputs = (x, *block.parameters())
    assert torch.autograd.gradcheck(function, inputs)


def test_one_value_per_channel():
    with pytest.raises(ValueError, match="more than one value"):
        residual_block(torch.randn(1, 2, 1, 1), Block(2))


def test_keeps_four_maps():
    x = channels_last(2, 8, 40, 36)
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        residual_block(x.requires_grad_(), Block(8))
    assert kept.count(x.numel()) == 4
