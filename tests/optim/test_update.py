"""The momentum update in each of its ways: compiled, by blocks, of many tensors at once."""

from contextlib import nullcontext
from itertools import product

import pytest
import torch

from clars import native
from clars.native.squares import BLOCK
from clars.optim.update import Momentum, update

SIZES = [(3, 5), (BLOCK + 7,), (), (0,), (2, BLOCK)]
WAYS = {"compiled": nullcontext, "torch's operators": native.suspended}


OPTIONS = [Momentum(*each) for each in product([0.0, 0.7], [0.0, 0.1], [False, True], [False, True])]


def by_the_formula(w, g, b, rate, options):
    inside, outside = (rate, 1.0) if options.rate_in_buffer else (1.0, rate)
    change = inside * (g + options.weight_decay * w)
    if not options.momentum:
        return w - outside * change, b
    b = options.momentum * b + change
    return w - outside * (change + options.momentum * b if options.nesterov else b), b


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("transposed", [False, True])
def test_against_the_formula(way, options, transposed):
    """Where no kernels were compiled, a large tensor passed its momentum by in Nesterov's term, seen by no test."""
    generator = torch.Generator().manual_seed(0)

    def tensors():
        made = [torch.randn(size, generator=generator) for size in SIZES]
        return [value.mT.contiguous().mT if transposed and value.dim() > 1 else value for value in made]

    w, g, b = tensors(), tensors(), tensors() if options.momentum else [None] * len(SIZES)
    rates = list(torch.rand(len(SIZES), generator=generator).unbind())
    doubles = [[None if value is None else value.double() for value in values] for values in (w, g, b, rates)]
    expected = [by_the_formula(*each, options) for each in zip(*doubles)]
    with way():
        update(w, g, b, rates, options)
    for value, buffer, (wanted, momentum) in zip(w, b, expected):
        torch.testing.assert_close(value.double(), wanted, rtol=4e-7, atol=4e-7)
        if buffer is not None:
            torch.testing.assert_close(buffer.double(), momentum, rtol=4e-7, atol=4e-7)


@pytest.mark.parametrize("options", [options for options in OPTIONS if options.momentum])
def test_all_ways_round_alike(options):
    """A tensor below a block's size and one above it, by the kernel, by blocks and together."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(size, generator=generator) for size in SIZES for _ in range(3)]
    rates = list(torch.rand(len(SIZES), generator=generator).unbind())
    ends = []
    for way in WAYS.values():
        made = [value.clone() for value in start]
        with way():
            update(made[::3], made[1::3], made[2::3], rates, options)
        assert all(map(torch.equal, made[1::3], start[1::3])), "the gradients are the user's"
        ends.append(made)
    assert all(map(torch.equal, *ends))
