"""What a GPU computes: sums of many networks in every precision, no synchronisation, memory formats, graphs.

Most of it needs one, and `make gpu` runs it there. The sums of two networks are compared on the processor too.
"""

import subprocess
import sys

import pytest
import timm
import torch
from networks import NETWORKS, errors, exactly, placed, said
from torch import nn
from torch.nn import functional as F

import clars

BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2}
FORMATS = (torch.contiguous_format, torch.channels_last)
CASES = [pytest.param(name, "cpu", torch.float32, id=f"{name}-cpu-float32") for name in ("convnext_atto", "resnet18")]
CASES += [
    pytest.param(name, "cuda", dtype, id=f"{name}-cuda-{str(dtype).removeprefix('torch.')}", marks=pytest.mark.gpu)
    for name in NETWORKS
    for dtype in BOUNDS
]


@pytest.fixture(autouse=True)
def whole_float32():
    """No tf32, which keeps ten bits of float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("name, device, dtype", CASES)
def test_sums_are_those_of_the_processor_in_float64(name, device, dtype, record_property):
    """Where batch statistics of few values lose digits, the gradient loses them too, and no more is asked of its sums.

    bfloat16 is that of autocast, over parameters in float32.
    """
    autocast = dtype if dtype == torch.bfloat16 else None
    for memory_format in FORMATS[: 1 if name == "1D and 3D" else 2]:
        model, x, y = placed(name, device, torch.float32 if autocast else dtype, memory_format)
        found = errors(said(model, x, y, autocast), exactly(name))
        worst = max(found, key=lambda layer: found[layer][0])
        record_property(f"{name}, {dtype}, {memory_format}", [worst, *found[worst]])
        beyond = {layer: pair for layer, pair in found.items() if pair[0] > max(BOUNDS[dtype], pair[1])}
        assert not beyond, f"errors of the sum and of the gradient, by layer: {beyond}"


def step_of(model, optimizer, dtype):
    def step(x, y):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def setup(name="resnet18", channels_last=True):
    torch.manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = timm.create_model(name, num_classes=10).cuda().to(memory_format=memory_format)
    x = torch.randn(8, 3, 64, 64, device="cuda").to(memory_format=memory_format)
    return model, x, torch.randint(10, (8,), device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("estimator", ["exact", "group", "subset"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "convnext_atto"])
def test_a_step_does_not_wait_for_the_device(name, dtype, estimator):
    model, x, y = setup(name)
    step = step_of(model, clars.CLARS(model, lr=1.0, estimator=estimator), dtype)
    for _ in range(2):  # times the methods, compiles kernels, makes constants; looks at the first steps
        step(x, y)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_gradients_keep_channels_last():
    model, x, y = setup()
    x.requires_grad_()
    norms = clars.ExampleNorms(model)
    F.cross_entropy(model(x), y).backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            assert module.weight.grad.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.isfinite(value) for value in norms.sums().values())


@pytest.mark.gpu
def test_float16_with_a_gradient_scaler():
    """The statistics are in the unit of the gradient after the scaler has divided it by its scale."""
    x, y = (value.cuda() for value in placed("resnet18", "cpu", torch.float32, torch.contiguous_format)[1:])
    model = placed("resnet18", "cuda", torch.float32, torch.contiguous_format)[0]
    optimizer = clars.CLARS(model, lr=1.0)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    with torch.autocast("cuda", torch.float16):
        loss = F.cross_entropy(model(x), y)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    told = optimizer.layer_stats()
    for layer, total in exactly("resnet18").sums.items():
        assert told[layer].example_norm_sum == pytest.approx(float(total), rel=2e-2), layer


@pytest.mark.gpu
def test_a_compiled_network_is_not_compiled_again():
    from torch._dynamo.utils import counters

    model, x, y = setup()
    step = step_of(torch.compile(model, backend="aot_eager"), clars.CLARS(model, lr=1.0), torch.bfloat16)
    counters.clear()
    for _ in range(2):
        step(x, y)
    graphs = counters["stats"]["unique_graphs"]
    for _ in range(3):
        step(x, y)
    assert counters["stats"]["unique_graphs"] == graphs > 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "make",
    [
        lambda model: clars.CLARS(model, lr=1.0, overrides={"fc": {"lr": 0.5}}),
        lambda model: clars.CLARS(model, lr=1.0, estimator="group", group=4),
        lambda model: clars.LARS(model, lr=1.0),
        lambda model: clars.LAMB(model, lr=1e-3),
        lambda model: torch.optim.SGD(model.parameters(), 1e-2, 0.9, nesterov=True),
    ],
    ids=["clars", "group", "lars", "lamb", "sgd"],
)
def test_a_whole_step_in_a_graph(make, dtype):
    """Ten steps under a schedule, with running statistics and counters; one batch is smaller."""
    ends, losses, told = [], [], []
    for captured in (False, True):
        model, x, y = setup()
        optimizer = make(model)
        step = step_of(model, optimizer, dtype)
        taking = clars.graphed(step) if captured else step
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        mine = []
        for number in range(10):
            rows = slice(None, 5 if number == 7 else None)
            mine.append(taking(x[rows] + number / 10, y[rows]).detach().clone())
            schedule.step()
        losses.append(torch.stack(mine))
        ends.append({name: value.detach().clone() for name, value in model.state_dict().items()})
        told.append(optimizer.layer_stats() if hasattr(optimizer, "layer_stats") else {})
    assert ends[1]["bn1.num_batches_tracked"] == 10
    rough = 1e-3 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(losses[1], losses[0], rtol=rough, atol=rough)
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=rough, atol=rough, msg=lambda m, n=name: f"{n}: {m}")
    for layer, row in told[0].items():
        assert told[1][layer].ratio == pytest.approx(row.ratio, rel=10 * rough), layer


WAITS = """
import torch, clars
from torch import nn

model = nn.Linear(4, 2).cuda()
optimizer = clars.CLARS(model, lr=1.0)

def step(x):
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()

taking, x = clars.graphed(step), torch.randn(8, 4, device="cuda")
for number in range(4):
    try:
        taking(x)
    except clars.UserError as error:
        print(number, error)
"""


@pytest.mark.gpu
def test_what_waits_is_refused_in_a_graph():
    """In a process of its own: a capture that has failed may leave torch's memory and draws in disorder."""
    done = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 The step cannot be captured in a CUDA graph: ") and ".item()" in done.stdout


@pytest.mark.gpu
def test_inputs_of_a_graph_are_on_the_gpu():
    model, x, y = setup()
    with pytest.raises(clars.UserError, match="on one GPU"):
        clars.graphed(step_of(model, clars.CLARS(model, lr=1.0), torch.float32))(x.cpu(), y.cpu())


@pytest.mark.gpu
def test_dropout_follows_the_seed_in_a_graph():
    model = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.Linear(64, 4)).cuda()
    x, y = torch.randn(16, 8, device="cuda"), torch.randint(4, (16,), device="cuda")
    taking = clars.graphed(step_of(model, clars.CLARS(model, lr=0.0), torch.float32))

    def loss(seed):
        torch.cuda.manual_seed(seed)
        return float(taking(x, y))

    for _ in range(3):
        taking(x, y)
    first = loss(1)
    assert loss(2) != first and loss(1) == pytest.approx(first, rel=1e-6)
