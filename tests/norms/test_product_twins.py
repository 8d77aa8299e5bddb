"""The plain twins of the kernels for accelerators against autograd in double precision."""

import inspect

import pytest
import torch
from convolutions import Case
from torch.nn import functional as F

from clars.native import product_twins as twins
from clars.native.triton import depthwise, fused_products, gram

CASES = {
    "1x1": Case((3, 5, 4, 3), 6, (1, 1)),
    "linear": Case((4, 5, 6, 1), 7, (1, 1), layout="features last"),
    "3x3": Case((3, 5, 6, 7), 6, (3, 3), padding=(1, 1), layout="channels last"),
    "all": Case((4, 6, 9, 8), 4, (3, 2), (2, 1), (1, 0), (1, 2), groups=2, group=2),
    "groups of three and a rest": Case((8, 5, 6, 7), 6, (3, 3), padding=(1, 1), group=3),
    "one group": Case((3, 5, 4, 3), 6, (1, 1), group=5),
    "depthwise": Case((5, 6, 6, 7), 6, (3, 3), (2, 1), (1, 1), groups=6, group=2),
    "bfloat16": Case((3, 5, 6, 7), 6, (3, 3), padding=(1, 1), dtype=torch.bfloat16),
    "float16": Case((3, 6, 6, 7), 6, (3, 3), padding=(1, 1), dtype=torch.float16, groups=6),
    "float64": Case((3, 5, 6, 7), 6, (3, 3), padding=(1, 1), dtype=torch.float64),
}


def by_autograd(case, gy, x):
    weight = torch.zeros(case.outputs, x.shape[1] // case.groups, *case.kernel, dtype=torch.float64, requires_grad=True)
    own = []
    for gy_some, x_some in zip(gy.double().split(case.group), x.double().split(case.group)):
        y = F.conv2d(x_some, weight, None, case.stride, case.padding, case.dilation, case.groups)
        own += torch.autograd.grad(y, weight, gy_some)
    return sum(own), torch.stack([gradient.square().sum() for gradient in own])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_twins(case):
    gy, x = case.operands("cpu")
    gradient, squares = by_autograd(case, gy, x)
    found = [twins.fused_products(gy, x, *case.geometry, case.groups, case.group)]
    found.append((None, twins.fused_squares(gy, x, *case.geometry, case.groups, case.group)))
    if case.groups == 1:
        found.append((None, twins.gram_squares(gy, x, *case.geometry, case.group)))
    if case.groups == x.shape[1]:
        found.append(twins.depthwise_products(gy, x, *case.geometry, case.group))
    bound = 1e-14 if case.dtype == torch.float64 else 1e-6
    for own_gradient, own_squares in found:
        assert own_squares.dtype == torch.promote_types(case.dtype, torch.float32)
        torch.testing.assert_close(own_squares.double(), squares, rtol=bound, atol=0)
        if own_gradient is not None:
            assert own_gradient.shape == gradient.shape and own_gradient.dtype == own_squares.dtype
            assert (own_gradient - gradient).norm() < bound * gradient.norm()


@pytest.mark.parametrize("kernel", [fused_products.fused_products, fused_products.fused_squares, gram.gram_squares,
                                    depthwise.depthwise_products], ids=lambda kernel: kernel.__name__)  # fmt: skip
def test_twins_take_what_kernels_take(kernel):
    twin = inspect.signature(getattr(twins, kernel.__name__)).parameters.values()
    taken = inspect.signature(kernel).parameters.values()
    assert [(each.name, each.default) for each in twin] == [(each.name, each.default) for each in taken]
