"""What happens around the layers: accumulation, recomputation, precision, freezing, copies."""

import copy
import gc
import pickle
import subprocess
import sys
import weakref

import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import assert_exact, backward_sums, gradient_norms, squared_loss
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import clars


class Block(nn.Module):
    """In-place activation and in-place residual addition, as in common residual networks."""

    def __init__(self, channels=4, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = norm(channels)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        out = self.conv2(self.act(self.norm1(self.conv1(x))))
        out += x
        return self.act(out)


def group_norm(channels):
    return nn.GroupNorm(2, channels)


def network(norm=nn.BatchNorm2d):
    return nn.Sequential(nn.Conv2d(2, 4, 3), Block(norm=norm), nn.Flatten(), nn.Linear(36, 3)).double()


def images(n=4):
    return torch.randn(n, 2, 5, 5, dtype=torch.double)


def test_in_place_operations():
    assert_exact(network(), squared_loss, images())


def test_a_single_example_has_the_gradients_norm():
    model = network(group_norm)
    sums, _ = backward_sums(model, squared_loss, images(1))
    torch.testing.assert_close(sums, gradient_norms(model), rtol=1e-12, atol=0)


def test_input_that_needs_a_gradient():
    model, x = network(), images().requires_grad_()
    squared_loss(model, x).backward()
    plain, x.grad = x.grad, None
    backward_sums(model, squared_loss, x)
    torch.testing.assert_close(x.grad, plain, rtol=1e-12, atol=0)


def test_accumulation_over_micro_batches():
    """Without batch statistics, micro-batches of a mean loss add up to the whole batch."""
    model, x = network(group_norm), images(6)
    whole, _ = backward_sums(model, squared_loss, x)
    norms = clars.ExampleNorms(model)
    for part in x.split([2, 2, 2]):
        (squared_loss(model, part) / 3).backward()
    torch.testing.assert_close(norms.sums(), whole, rtol=1e-12, atol=0)
    norms.reset()
    assert not any(norms.sums().values())


def test_two_forward_passes_before_their_backward_passes():
    model, x = network(group_norm), images(4)
    whole, _ = backward_sums(model, squared_loss, x)
    norms = clars.ExampleNorms(model)
    losses = [squared_loss(model, part) / 2 for part in x.split(2)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(norms.sums(), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network(group_norm)

        def forward(self, x):
            x = self.net[0](x)
            x = checkpoint(self.net[1], x, use_reentrant=reentrant)
            return checkpoint(self.net[2:], x, use_reentrant=reentrant)

    model, x = Checkpointed().double(), images()
    expected, _ = backward_sums(model.net, squared_loss, x)
    sums, _ = backward_sums(model, squared_loss, x)
    torch.testing.assert_close(list(sums.values()), list(expected.values()), rtol=1e-12, atol=0)


@pytest.mark.parametrize("options", [{}, {"preserve_rng_state": False}, {"determinism_check": "none"}])
def test_activation_checkpointing_at_the_first_step_of_a_shape(options):
    """What planning a compiled layer looked at passed for something to keep: an error at each new shape."""
    model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.Flatten(), nn.LazyLinear(5))
    model(torch.randn(1, 3, 9, 9))
    norms = clars.ExampleNorms(model)
    for examples in (3, 5):
        model.zero_grad()
        checkpoint(model, torch.randn(examples, 3, 9, 9), use_reentrant=False, **options).square().sum().backward()
        assert all(norms.sums().values())


def test_loss_scaling_scales_the_sums():
    model, x = network(), images()
    plain, _ = backward_sums(model, squared_loss, x)
    scaled, _ = backward_sums(model, lambda m, x: 1024 * squared_loss(m, x), x)
    torch.testing.assert_close(scaled, {name: 1024 * value for name, value in plain.items()}, rtol=1e-12, atol=0)


def test_bfloat16_autocast():
    """The same casts as without tracking, bit for bit; norms in float32, right to bfloat16's rounding."""
    model, x = network().float(), images(8).float()

    def loss_fn(model, x):
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        return y.float().square().sum(1).mean()

    plain = loss_fn(model, x)
    plain.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    sums, loss = backward_sums(model, loss_fn, x)
    assert torch.equal(loss, plain)
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=2**-6, atol=2**-6 * gradients[name].norm())
    exact = clars.oracle.mask_norms(model, lambda m, x: m(x).square().sum(1).mean(), x)
    for name, value in exact.items():
        assert sums[name].dtype == torch.float32
        torch.testing.assert_close(sums[name], value, rtol=0.03, atol=0)


def test_bfloat16_parameters_accumulate_in_float32():
    model, x = network(group_norm).bfloat16(), images(64).bfloat16()
    sums, _ = backward_sums(model, squared_loss, x)
    twin = copy.deepcopy(model).double()
    exact, _ = backward_sums(twin, squared_loss, x.double())
    for name, value in exact.items():
        assert sums[name].dtype == torch.float32
        torch.testing.assert_close(sums[name].double(), value, rtol=0.03, atol=0)


def test_frozen_layers_and_frozen_biases():
    model = network()
    model[0].requires_grad_(False)
    model[1].conv2.bias.requires_grad_(False)
    assert "0" not in assert_exact(model, squared_loss, images())


def test_freezing_after_the_tracking_began():
    model, x = network(), images()
    norms = clars.ExampleNorms(model)
    model[3].requires_grad_(False)
    squared_loss(model, x).backward()
    sums = norms.sums()
    assert sums["3"] == 0 and sums["0"] > 0


def test_no_grad_and_evaluation_leave_no_trace():
    model, x = network(), images()
    norms = clars.ExampleNorms(model)
    with torch.no_grad():
        model(x)
    model.eval()
    with torch.inference_mode():
        model(x)
    assert not any(norms.sums().values())
    assert norms.totals() == {}


def test_state_dict_and_parameters_do_not_show_the_tracking():
    model = network()
    keys, names = list(model.state_dict()), [name for name, _ in model.named_parameters()]
    norms = clars.ExampleNorms(model)
    squared_loss(model, images()).backward()
    assert norms.sums()["0"] > 0
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_parameters()] == names


def test_remove_restores_the_model():
    model = network()
    before = [dict(module.__dict__) for module in model.modules()]
    norms = clars.ExampleNorms(model)
    assert "forward" in model[0].__dict__
    norms.remove()
    assert [dict(module.__dict__).keys() for module in model.modules()] == [b.keys() for b in before]
    squared_loss(model, images()).backward()
    assert norms.totals() == {}


def test_remove_under_a_foreign_wrapper_passes_through():
    """accelerate replaces `forward` by its own wrapper; taking that away would undo somebody else's work."""
    model = nn.Linear(2, 2)
    norms = clars.ExampleNorms(model)
    tracked = model.forward
    model.forward = lambda x: 2 * tracked(x)
    norms.remove()
    x = torch.ones(1, 2)
    torch.testing.assert_close(model(x), 2 * F.linear(x, model.weight, model.bias))


def test_copies_and_pickles_are_not_tracked():
    """A copy that kept the original's forward would compute with the original's weights, silently."""
    model, x = network(), images()
    norms = clars.ExampleNorms(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert not twin(x).any()
        squared_loss(twin, x).backward()
        assert twin[0].weight.grad is not None and model[0].weight.grad is None
    assert norms.totals() == {}


def test_a_later_tracker_takes_over_and_the_earlier_one_says_so():
    model, x = network(group_norm), images()
    expected, _ = backward_sums(model, squared_loss, x)
    earlier = clars.ExampleNorms(model)
    optimizer = clars.CLARS(model, lr=1.0)
    model.zero_grad()
    squared_loss(model, x).backward()
    torch.testing.assert_close(optimizer.norms.sums(), expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match="later ExampleNorms"):
        earlier.sums()
    optimizer.norms.remove()
    assert "forward" not in model[0].__dict__


def test_a_wrapped_forward_is_tracked_by_a_later_tracker_too():
    model, x = network(group_norm), images()
    expected, _ = backward_sums(model, squared_loss, x)
    earlier = clars.ExampleNorms(model)
    inner = model[0].forward
    model[0].forward = lambda x: inner(x)
    later = clars.ExampleNorms(model)
    squared_loss(model, x).backward()
    torch.testing.assert_close(later.sums(), expected, rtol=0, atol=0)
    assert earlier.replaced


def test_a_copy_under_mixed_precision_of_accelerate():
    """accelerate rebinds the model's forward as a method; a copy must run with its own parameters."""
    model = timm.create_model("test_vit", num_classes=3, img_size=32)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    optimizer = clars.CLARS(model, lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    x = torch.randn(2, 3, 32, 32)
    assert not twin(x).any()
    assert model(x).any() and accelerator.unwrap_model(model, keep_fp32_wrapper=False)(x).any()
    AcceleratorState._reset_state(reset_partial_state=True)


def test_gradients_cleared_by_the_model_take_the_sums_along():
    """A bad batch that a training loop drops with model.zero_grad() must not stay in the sums."""
    model, x = network(group_norm), images()
    expected, _ = backward_sums(model, squared_loss, x)
    model.zero_grad()
    norms = clars.ExampleNorms(model)
    (squared_loss(model, x) * float("nan")).backward()
    model.zero_grad()
    squared_loss(model, x).backward()
    torch.testing.assert_close(norms.sums(), expected, rtol=0, atol=0)


def test_the_oracles_run_on_a_tracked_model():
    model, x = network(group_norm), images()
    norms = clars.ExampleNorms(model)
    squared_loss(model, x).backward()
    torch.testing.assert_close(norms.sums(), clars.oracle.mask_norms(model, squared_loss, x), rtol=1e-9, atol=0)
    clars.oracle.vmap_norms(model, lambda output, target: output.sum(1).mean(), x, torch.zeros(4))
    assert norms.active


def test_a_model_is_not_kept_alive_by_its_tracking():
    model = network()
    norms = clars.ExampleNorms(model)
    squared_loss(model, images()).backward()
    alive = weakref.ref(model)
    del model, norms
    gc.collect()
    assert alive() is None


def test_trackers_are_not_copied():
    norms = clars.ExampleNorms(network())
    with pytest.raises(ValueError, match="cannot be copied or pickled"):
        copy.deepcopy(norms)


def test_gradients_enabled_inside_a_forward_without():
    class Enables(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            with torch.enable_grad():
                return self.linear(x)

    model = Enables()
    norms = clars.ExampleNorms(model)
    model(torch.randn(1, 3)).sum().backward()  # is followed, as a forward without gradients is not
    model.zero_grad()
    with torch.no_grad():
        y = model(torch.randn(1, 3))
    y.sum().backward()
    torch.testing.assert_close(norms.sums()["linear"], gradient_norms(model)["linear"])


def test_channels_last():
    model, x = network().to(memory_format=torch.channels_last), images()
    assert_exact(model, squared_loss, x.contiguous(memory_format=torch.channels_last))


def test_empty_loss_reaches_no_layer():
    model = network()
    norms = clars.ExampleNorms(model)
    model(images()).sum().detach()
    assert norms.totals() == {}


PUT_BACK = """
import gc
from torch import nn
from torch.nn.modules import batchnorm
import clars
before = batchnorm.sync_batch_norm
first, second = (clars.ExampleNorms(nn.Linear(3, 2)) for _ in range(2))
assert batchnorm.sync_batch_norm is not before
first.remove()
assert batchnorm.sync_batch_norm is not before
del second
gc.collect()
assert batchnorm.sync_batch_norm is before
"""


def test_torch_s_batch_normalisation_is_put_back():
    """It was replaced in the whole process for good, by the first tracker that was made."""
    subprocess.run([sys.executable, "-c", PUT_BACK], check=True)


def test_copies_of_weights_go_with_their_forward():
    """A cycle kept them until Python looked for garbage, which knows nothing of a device's memory."""

    class Copying(nn.Linear):
        def forward(self, x):
            copy = self.weight.clone()
            seen.append(weakref.ref(copy))
            return F.linear(x, copy, self.bias)

    seen, model = [], nn.Sequential(Copying(3, 3), nn.Linear(3, 2))
    norms = clars.ExampleNorms(model)
    gc.collect()
    gc.disable()
    try:
        model(torch.randn(4, 3)).square().sum().backward()
        assert seen[0]() is None
    finally:
        gc.enable()
    assert norms.sums()["0"] > 0
