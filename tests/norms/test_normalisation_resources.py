"""What GPUs that are not at hand would make of the kernels for normalisations, as they are launched there."""

import importlib.util
from unittest import mock

import gpu_code
import pytest
import torch

from clars.native.triton import compiling, normalisation

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")

TYPES = {torch.float32: "*fp32:16", torch.bfloat16: "*bf16:16"}
REST = (True, 0, 8, 1)  # the gradient of x is wanted, and the norms of eight examples, one by one


class Launch:
    """Stands for a compiled kernel, and keeps what it is launched with."""

    def __init__(self, function, unspecialized=()):
        self.kernel = compiling.compiled(function, unspecialized)

    def __getitem__(self, grid):
        return self

    def __call__(self, *arguments, **options):
        self.arguments, self.options = arguments, options

    def resources(self, architecture):
        """Return what the kernel takes, specialised to its arguments as at a launch."""
        types, constants = {}, {}
        for parameter, value in zip(self.kernel.params, self.arguments, strict=True):
            if isinstance(value, torch.Tensor):
                types[parameter.name] = TYPES[value.dtype]
            elif parameter.is_constexpr or (value == 1 and not parameter.do_not_specialize):
                constants[parameter.name] = value
            else:
                types[parameter.name] = "i32" if parameter.do_not_specialize or value % 16 else "i32:16"
        return gpu_code.resources(self.kernel, types, constants, architecture, **self.options)


def launches(function, *arguments):
    made = []
    with mock.patch.object(normalisation, "compiled", lambda *kernel: made.append(Launch(*kernel)) or made[-1]):
        function(*arguments, *REST)
    return made


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
        taken = launch.resources(architecture)
        assert taken.spilled == 0, (launch.kernel, taken)
        if name in LAUNCHES:  # two programs at once on a multiprocessor
            assert 2 * 32 * launch.options["num_warps"] * taken.registers <= 65536, (launch.kernel, taken)
