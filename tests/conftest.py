from importlib.util import find_spec

import pytest
import torch
from hypothesis import settings
from losses import squared_loss as squared_loss

import clars
from clars.native import device, operators

settings.register_profile("clars", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("clars")


def pytest_collection_modifyitems(items):
    lacking = {
        "deepspeed": "needs the extra [deepspeed]" if find_spec("deepspeed") is None else "",
        "gpu": "" if torch.cuda.is_available() else "needs a CUDA device",
    }
    for item in items:
        for marker, reason in lacking.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def accelerated(monkeypatch):
    """Take the processor for an accelerator: its layers are measured by the same operators, by their plain twins."""
    accelerate(monkeypatch)


def accelerate(patch):
    """Do so by a patch; in double precision as well, for which there are twins alone."""
    patch.setattr(operators, "ACCELERATED", {"cuda", "cpu"})
    patch.setattr(device, "DTYPES", (*device.DTYPES, torch.float64))


def backward_sums(model, loss_fn, *batch, **kwargs):
    """S_k per layer and the loss, by the tracker."""
    norms = clars.ExampleNorms(model, **kwargs)
    loss = loss_fn(model, *batch)
    loss.backward()
    sums = norms.sums()
    norms.remove()
    return sums, loss


def gradient_norms(model, by="module"):
    return {
        layer.name: torch.cat([p.grad.flatten() for p in layer.parameters.values() if p.grad is not None]).norm()
        for layer in clars.layers(model, by)
    }


def assert_exact(model, loss_fn, *batch, rtol=1e-9, atol=0.0, by="module", loss_rtol=0.0):
    """The tracker equals the mask oracle, leaves loss and gradients as they are, and S_k >= ||g_k||."""
    buffers = {name: value.clone() for name, value in model.named_buffers()}

    def restart():
        torch.manual_seed(1)
        model.zero_grad()
        model.load_state_dict(buffers, strict=False)

    restart()
    expected = clars.oracle.mask_norms(model, loss_fn, *batch, by=by)
    restart()
    plain = loss_fn(model, *batch)
    plain.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    restart()
    sums, loss = backward_sums(model, loss_fn, *batch, layers=clars.layers(model, by))
    torch.testing.assert_close(loss, plain, rtol=loss_rtol, atol=0)
    assert sums.keys() == expected.keys()
    scale = max(value.norm() for value in gradients.values())
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=rtol, atol=1e-13 * float(scale))
    for name, value in expected.items():
        torch.testing.assert_close(sums[name], value, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
    for name, norm in gradient_norms(model, by).items():
        assert sums[name] >= norm * (1 - 1e-12), name
    return sums
