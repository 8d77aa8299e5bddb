"""The operators for accelerators as torch.compile sees them, and the networks that they measure, on a processor."""

import pytest
import timm
import torch
from conftest import assert_exact, backward_sums, squared_loss
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F

import clars
from clars.native import device
from clars.norms.methods import METHODS

WINDOWS = ((3, 3), (2, 1), (1, 1), (1, 1))
NETWORKS = {
    "resnet18": {"zero_init_last": False},
    "mobilenetv2_100": {},
    "convnext_atto": {},
    "vit_tiny_patch16_224": {"img_size": 32},
    "regnetx_002": {},
}


def operands(channels=6, outputs=6, memory_format=torch.contiguous_format):
    gy, x = torch.randn(5, outputs, 4, 8), torch.randn(5, channels, 8, 8)
    return [value.to(memory_format=memory_format) for value in (gy, x)]


def statistics(channels=6):
    return torch.randn(channels), torch.rand(channels) + 0.5, torch.randn(channels)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("group", [1, 2])
def test_fakes_tell_shapes_types_and_strides(memory_format, group):
    gy, x = operands(memory_format=memory_format)
    square = torch.randn_like(x)
    mean, rstd, weight = statistics()
    by_group = torch.randn(5, 3), torch.rand(5, 3)
    rows = torch.randn(5, 9, 6), torch.randn(5, 9, 6)
    by_row = torch.randn(5, 9), torch.rand(5, 9)
    wanted = (0, 5, group) if group > 1 else (1, 3, 1)
    for name, arguments in {
        "fused_products": (gy, x, *WINDOWS, 1, group),
        "fused_squares": (gy, x, *WINDOWS, 2, group),
        "gram_squares": (gy, x, *WINDOWS, group),
        "depthwise_products": (gy, x, *WINDOWS, group),
        "batch_norm_backward": (square, x, mean, rstd, weight, True, True, *wanted),
        "group_norm_backward": (square, x, *by_group, weight, 3, True, *wanted),
        "layer_norm_backward": (*rows, *by_row, weight, False, *wanted),
    }.items():
        operator = getattr(torch.ops.clars_device, name).default
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_nothing_formed_in_a_backward_pass_is_differentiated():
    gy, x = operands()
    squares = device.gram_squares(gy.requires_grad_(), x, *WINDOWS, 1)
    with pytest.raises(ValueError, match="cannot be differentiated"):
        squares.sum().backward()


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_in_float64(name, accelerated):
    model = timm.create_model(name, num_classes=10, **NETWORKS[name]).double()
    x, y = torch.randn(3, 3, 32, 32, dtype=torch.double), torch.arange(3)
    assert_exact(model, lambda model, x, y: F.cross_entropy(model(x), y), x, y)


@pytest.mark.parametrize("method", ["fused", "squared", "gram", "depthwise", "matrix", "grouped"])
def test_each_method_in_float64(method, accelerated, monkeypatch):
    for each in METHODS:
        if each.name == method:
            monkeypatch.setattr(each, "operations", lambda sizes: 0.0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8, padding=(0, 1)),
        nn.Conv2d(8, 6, 1, stride=2), nn.Conv2d(6, 4, 3, groups=2, padding=1), nn.Flatten(2), nn.Conv1d(4, 5, 2),
        nn.InstanceNorm1d(5, affine=True), nn.Linear(11, 3),
    ).double()  # fmt: skip
    x = torch.randn(5, 3, 14, 14, dtype=torch.double)
    assert_exact(model, squared_loss, x)
    expected = clars.oracle.mask_norms(model, squared_loss, x, group=2)
    sums, _ = backward_sums(model, squared_loss, x, estimator="group", group=2)
    torch.testing.assert_close(sums, expected, rtol=1e-9, atol=0)


def losses(model, run, steps, autocast):
    """Train with new tensors at each step, of two sizes of batches; return the sums of the last step."""
    optimizer = clars.CLARS(model, lr=0.1)
    for step in range(steps):
        torch.manual_seed(step)
        x, y = torch.randn(6 if step % 2 else 4, 3, 16, 16), torch.randint(4, (6 if step % 2 else 4,))
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(run(x).float(), y)
        loss.backward()
        sums = optimizer.norms.sums()
        optimizer.step()
    return sums


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_inductor_compiles_once_for_a_size(accelerated, autocast):
    ends = []
    for compiles in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1), nn.Flatten(2),
            nn.LayerNorm(256), nn.Linear(256, 4), nn.Flatten(), nn.Linear(32, 4),
        )  # fmt: skip
        run = model
        if compiles:
            run = torch.compile(model, backend="inductor", dynamic=False, fullgraph=True)
            counters = torch._dynamo.utils.counters
            counters.clear()
        ends.append(losses(model, run, 20, autocast))
    assert counters["stats"]["unique_graphs"] == 2  # a size of batches each
    assert not counters["graph_break"]
    for name, total in ends[0].items():
        torch.testing.assert_close(ends[1][name], total, rtol=5e-2 if autocast else 1e-4, atol=1e-6)


def test_the_compiler_sees_operators_whole(accelerated):
    torch._dynamo.reset()
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8 * 36, 4))
    norms = clars.ExampleNorms(model)
    run = torch.compile(model, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))
    run(torch.randn(4, 3, 8, 8)).square().sum().backward()
    called = [str(node.target) for node in graphs[-1].graph.nodes if node.op == "call_function"]
    assert sum("clars_device" in name for name in called) == 3  # the weights of convolutions and the linear layer
    assert len(norms.sums()) == 4
    assert not any("clars_device.batch_norm" in name for name in called)  # the compiler writes a kernel of its own
    torch._dynamo.reset()


@pytest.mark.parametrize("function", [nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))], ids=str)
def test_no_positions(function, accelerated):
    norms = clars.ExampleNorms(function)
    function(torch.randn(5, 0, 4)).sum().backward()
    assert all(value == 0 for value in norms.sums().values())
    assert all(not parameter.grad.any() for parameter in function.parameters())


def test_statistics_in_half_precision(accelerated, monkeypatch):
    """What normalises in evaluation mode is formed of them in float32, as torch forms it."""
    seen = []
    plain = device.batch_norm_backward

    def noted(*arguments):
        seen.append(arguments[3])
        return plain(*arguments)

    monkeypatch.setattr(device, "batch_norm_backward", noted)
    layer = nn.BatchNorm1d(64).eval()
    layer.running_var.uniform_(0.5, 2.0)
    layer.bfloat16()
    model = nn.Sequential(layer)
    norms = clars.ExampleNorms(model)
    model(torch.randn(8, 64, 9).bfloat16()).square().sum().backward()
    assert norms.sums()["0"] > 0
    torch.testing.assert_close(seen[0].double(), (layer.running_var.double() + layer.eps).rsqrt(), rtol=1e-6, atol=0)
