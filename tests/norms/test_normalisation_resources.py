"""What GPUs that are not at hand would make of the kernels for normalisations, as they are launched there."""

import gpu_code
import pytest
import torch

from clars.native.triton import normalisation

pytestmark = gpu_code.able

REST = (True, 0, 8, 1)  # the gradient of x is wanted, and the norms of eight examples, one by one


def launches(function, *arguments):
    return gpu_code.launches(lambda: function(*arguments, *REST))


def nowhere(*shape, dtype=torch.float32, form=torch.contiguous_format):
    """Return a tensor that takes no memory."""
    return torch.empty(shape, dtype=dtype, device="meta").to(memory_format=form)


def batch_norm(*shape, training=True, **options):
    x, channels = nowhere(*shape, **options), nowhere(shape[1])
    return launches(normalisation.batch_norm_backward, x, x, channels, channels, channels, training)


def group_norm(groups, *shape, **options):
    x, statistic = nowhere(*shape, **options), nowhere(shape[0], groups)
    return launches(normalisation.group_norm_backward, x, x, statistic, statistic, nowhere(shape[1]), groups)


def layer_norm(*shape, **options):
    x, statistic = nowhere(*shape, **options), nowhere(*shape[:2])
    return launches(normalisation.layer_norm_backward, x, x, statistic, statistic, nowhere(shape[2]))


HALF = {"dtype": torch.bfloat16}

LAUNCHES = {
    "batch": lambda: batch_norm(256, 256, 56, 56, form=torch.channels_last, **HALF),
    "group": lambda: group_norm(32, 64, 96, 32, 32),
    "layer": lambda: layer_norm(256, 197, 384),
    "layer, a whole row": lambda: layer_norm(64, 64, 4096, **HALF),
    "layer, more than a row": lambda: layer_norm(8, 64, 6000),
    "layer, more than a row, bfloat16": lambda: layer_norm(8, 64, 6000, **HALF),
}
ODD = {  # which one architecture is enough for
    "batch, one position": lambda: batch_norm(256, 48, training=False, **HALF),
    "batch, seven by seven": lambda: batch_norm(256, 512, 7, 7),
    "layer, rows that begin anywhere": lambda: layer_norm(64, 196, 100, **HALF),
}
EVERY = [(name, architecture) for architecture in gpu_code.ARCHITECTURES for name in LAUNCHES]
EVERY += [(name, max(gpu_code.ARCHITECTURES)) for name in ODD]


@pytest.mark.parametrize(("name", "architecture"), EVERY)
def test_no_spills(name, architecture):
    for launch in (LAUNCHES | ODD)[name]():
        taken = gpu_code.resources(launch, architecture)
        assert taken.spilled == 0, (launch.kernel, taken)
        if name in LAUNCHES:  # two programs at once on a multiprocessor
            assert 2 * 32 * launch.options["num_warps"] * taken.registers <= 65536, (launch.kernel, taken)
