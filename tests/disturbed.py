"""recipes/train.py with something that goes wrong on the way: disturbed.py DISTURBANCE STEP WORDS...

interrupt: Ctrl-C on every process after that step. nan: the loss of the last process alone is not finite in it.
gradient: the loss is finite, its gradient on the last process is not. raise: the last process raises an error in it.
half: killed by the system when half of the state after that step is written.
"""

import resource
import signal
import sys
from unittest import mock

import torch
from safetensors import torch as tensors_of

from clars.lab.launching import exits
from clars.lab.training import objective, run, script

DISTURBANCE, STEP = sys.argv[1], int(sys.argv[2])
after_step, forward_backward, save_file = (
    run.TrainingRun._after_step,
    run.TrainingRun._forward_backward,
    tensors_of.save_file,
)
cross_entropy = objective.F.cross_entropy


class Spoiled(torch.autograd.Function):
    """Changes nothing but the gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


def spoiled(logits, *arguments, **options):
    return cross_entropy(Spoiled.apply(logits), *arguments, **options)


def after(self):
    after_step(self)
    if self.progress.step == STEP:
        raise KeyboardInterrupt


def alone(self, x, y):
    accelerator = self.accelerator
    if self.progress.step + 1 == STEP and accelerator.process_index == accelerator.num_processes - 1:
        if DISTURBANCE == "raise":
            raise OSError(5, "the disk is gone", "data")
        if DISTURBANCE == "gradient":
            with mock.patch.object(objective.F, "cross_entropy", spoiled):
                return forward_backward(self, x, y)
        x = x * float("nan")
    return forward_backward(self, x, y)


def half(tensors, path, metadata):
    if f'"step": {STEP},' in metadata.get("progress", ""):
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (sum(value.nbytes for value in tensors.values()) // 2,) * 2)
    save_file(tensors, path, metadata)


if DISTURBANCE == "interrupt":
    run.TrainingRun._after_step = after
elif DISTURBANCE == "half":
    tensors_of.save_file = half
else:
    run.TrainingRun._forward_backward = alone
sys.exit(exits.report(script.main(sys.argv[3:])))
