"""Parameters that belong to no layer: each is broadcast over the examples in one of a few ways."""

import pytest
import torch
from conftest import assert_exact, squared_loss
from torch import nn

USES = {
    "add": ((1, 4, 3), lambda p, x: x + p),
    "added to": ((4, 3), lambda p, x: p + x),
    "subtract": ((3,), lambda p, x: x - p),
    "subtract from": ((3,), lambda p, x: p - x),
    "multiply": ((3,), lambda p, x: x * p),
    "divide": ((3,), lambda p, x: x / p),
    "scalar": ((), lambda p, x: x * p),
    "in place": ((3,), lambda p, x: (x * 2).mul_(p)),
    "in-place operator": ((4, 1), lambda p, x: _iadd(x * 2, p)),
    "torch.mul": ((4, 1), lambda p, x: torch.mul(p, x)),
    "after a view": ((3,), lambda p, x: x.transpose(1, 2) * p.view(1, -1, 1)),
    "after indexing": ((3,), lambda p, x: x * p[None, None]),
    "after a permutation": ((3, 4), lambda p, x: x * p.t()),
    "expand": ((1, 1, 3), lambda p, x: torch.cat([p.expand(len(x), -1, -1), x], 1)),
    "expand_as": ((1, 1, 3), lambda p, x: x.sin() + p.expand_as(x).cos()),
}


def _iadd(x, p):
    x += p
    return x


class Loose(nn.Module):
    def __init__(self, shape, use):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.loose = nn.Parameter(torch.rand(shape) + 0.5)
        self.use = use

    def forward(self, x):
        return self.use(self.loose, self.inner(x))


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("batch", [1, 3])
def test_each_use(use, batch):
    model = Loose(*USES[use]).double()
    assert_exact(model, squared_loss, torch.randn(batch, 4, 3, dtype=torch.double))


@pytest.mark.parametrize(
    "use", [lambda p, x: x.type_as(p), lambda p, x: x.to(p), lambda p, x: x.expand_as(p.view(1, 4, 3))]
)
def test_type_and_shape_taken_from_a_parameter(use):
    """The parameter's values are not used; what comes out is not the parameter."""

    class Borrows(Loose):
        def forward(self, x):
            return use(self.loose, self.inner(x)) * self.loose

    model = Borrows((4, 3), None).double()
    assert_exact(model, squared_loss, torch.randn(1, 4, 3, dtype=torch.double))


def test_shape_and_other_attributes_are_harmless():
    class Asks(Loose):
        def forward(self, x):
            assert (
                self.loose.shape and self.loose.requires_grad and self.loose.dtype and self.loose.detach() is not None
            )
            return super().forward(x)

    assert_exact(Asks(*USES["add"]).double(), squared_loss, torch.randn(3, 4, 3, dtype=torch.double))
