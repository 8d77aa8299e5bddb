"""What holds on a GPU only: no synchronisation, mixed precision, memory formats, graph capture."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import clars

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def step_of(model, optimizer, x, y, dtype):
    def step():
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

    return step


def setup(name="resnet18", channels_last=True):
    torch.manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = timm.create_model(name, num_classes=10).cuda().to(memory_format=memory_format)
    x = torch.randn(8, 3, 64, 64, device="cuda").to(memory_format=memory_format)
    return model, x, torch.randint(10, (8,), device="cuda")


@pytest.mark.parametrize("estimator", ["exact", "subset"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "convnext_atto"])
def test_a_step_does_not_wait_for_the_device(name, dtype, estimator):
    model, x, y = setup(name)
    step = step_of(model, clars.CLARS(model, lr=1.0, estimator=estimator), x, y, dtype)
    step()  # times the methods, compiles kernels, makes constants
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_gradients_keep_channels_last():
    model, x, y = setup()
    x.requires_grad_()
    norms = clars.ExampleNorms(model)
    F.cross_entropy(model(x), y).backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.isfinite(value) for value in norms.sums().values())


@pytest.mark.parametrize("channels_last", [False, True])
def test_sums_equal_those_of_the_cpu_in_float64(channels_last):
    model, x, y = setup(channels_last=channels_last)
    norms = clars.ExampleNorms(model)
    F.cross_entropy(model(x), y).backward()
    sums = norms.sums()
    norms.remove()
    exact = model.cpu().double()
    norms = clars.ExampleNorms(exact)
    F.cross_entropy(exact(x.cpu().double()), y.cpu()).backward()
    with torch.no_grad():
        for name, total in norms.sums().items():
            torch.testing.assert_close(sums[name].cpu().double(), total, rtol=2e-3, atol=0)


def test_a_whole_step_in_a_graph():
    ends = []
    for captured in (False, True):
        model, x, y = setup()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats, module.num_batches_tracked = False, None
        step = step_of(model, clars.CLARS(model, lr=1.0), x, y, torch.float32)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            step = graph.replay
        for _ in range(3):
            step()
        ends.append([parameter.detach().clone() for parameter in model.parameters()])
    for eager, replayed in zip(*ends):
        torch.testing.assert_close(replayed, eager, rtol=1e-4, atol=1e-5)
