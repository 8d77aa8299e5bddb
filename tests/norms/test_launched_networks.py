"""Steps of whole networks with kernels that are compiled for an H100 that is not there, and launched by a stand-in.

What they compute is nothing; that the launches of all layers can be made, and are made, is what this tells. There is
one driver for a process, so each network has its own, this file run as a script.
"""

import sys
from pathlib import Path

import gpu_code
import pytest
import scripts

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OPTIONS = {"img_size": 64}
NETWORKS = ["resnet18", "mobilenetv2_100", "convnext_atto", "vit_tiny_patch16_224", "regnetx_002"]


@pytest.mark.slow
@gpu_code.with_triton
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_launch_is_made(name, precision):
    printed = scripts.run(__file__, name, precision, paths=[BENCHMARKS], TRITON_INTERPRET="0")
    first, *later = map(int, printed.split())
    assert set(later) == {first}, printed
    assert first == 3 * 20 + 21 if name == "resnet18" else first > 50  # normalisations, and weights of other layers


def main(name, precision):
    import no_device
    import timm
    import torch
    from torch.nn import functional as F

    import clars
    from clars.native import operators
    from clars.native.triton import compiling

    launched = []
    no_device.install(lambda *launch: launched.append(launch))
    compiling.available = lambda device: True
    operators.ACCELERATED.add("cpu")
    options = OPTIONS if "vit" in name else {}
    model = timm.create_model(name, num_classes=10, **options).to(memory_format=torch.channels_last)
    x, y = torch.randn(8, 3, 64, 64).to(memory_format=torch.channels_last), torch.randint(10, (8,))
    for kind in ({}, {"estimator": "group", "group": 3}, {"estimator": "subset"}):
        norms = clars.ExampleNorms(model, **kind)
        for _ in range(2):  # the second time the short way
            launched.clear()
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                loss = F.cross_entropy(model(x).float(), y)
            loss.backward()
            print(len(launched))
        assert len(norms.sums()) == len(norms.layers)
        norms.remove()


if __name__ == "__main__":
    main(*sys.argv[1:])
