"""The update in blocks is the update of whole tensors, bit for bit."""

import itertools

import pytest
import torch

from clars.optim.update import BLOCK, Momentum, pieces, update


def tensors(shape, layout):
    torch.manual_seed(0)
    made = [torch.randn(shape) for _ in range(3)]
    return [value.to(memory_format=torch.channels_last) for value in made] if layout == "channels last" else made


@pytest.mark.parametrize("options", [Momentum(*each) for each in itertools.product((0.0, 0.9), (0.0, 0.1), (0, 1))])
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_blocks_change_nothing(layout, options, monkeypatch):
    shape = (64, 48, 9, 10)  # more than two blocks, and a remainder
    ends = []
    for block in (BLOCK, 2**40):
        monkeypatch.setattr("clars.optim.update.BLOCK", block)
        w, g, b = tensors(shape, layout)
        b = b if options.momentum else None
        update([w], [g], [b], [torch.tensor(0.3)], options)
        ends.append((w, b))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] is None or torch.equal(ends[0][1], ends[1][1])


@pytest.mark.parametrize(("numbers", "expected"), [(BLOCK, 1), (BLOCK + 1, 2), (2 * BLOCK, 2)])
def test_pieces_cover_the_tensor(numbers, expected):
    tensor = torch.zeros(numbers)
    cut = pieces(tensor)
    assert len(cut) == expected
    for piece in cut:
        piece.add_(1)
    assert bool((tensor == 1).all())


def test_a_gradient_that_lies_otherwise_in_memory():
    (w, g, b), (other, _, _) = tensors((64, 48, 9, 10), "contiguous"), tensors((64, 48, 9, 10), "contiguous")
    update([w], [g.to(memory_format=torch.channels_last)], [b.clone()], [torch.tensor(0.3)], Momentum(0.9, 0.1, True))
    update([other], [g], [b.clone()], [torch.tensor(0.3)], Momentum(0.9, 0.1, True))
    assert torch.equal(w, other)
