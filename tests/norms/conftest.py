import pytest
import torch

from clars.native import device, operators


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def accelerated(monkeypatch):
    """Take the processor for an accelerator: its layers are measured by the same operators, by their plain twins."""
    accelerate(monkeypatch)


def accelerate(patch):
    """Do so by a patch; in double precision as well, for which there are twins alone."""
    patch.setattr(operators, "ACCELERATED", {"cuda", "cpu"})
    patch.setattr(device, "DTYPES", (*device.DTYPES, torch.float64))
