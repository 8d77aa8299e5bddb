"""CLARS's state through torch.distributed.checkpoint: saved by one number of processes, loaded by another.

    torchrun --nproc-per-node 2 examples/distributed_checkpoint.py

Without torchrun it runs in one process, on the whole model.

To mind:
- The helpers name the momentum by the model's parameters, so they need the model and the optimizer of it.
- Asked of an optimizer that has taken no step, they take one with zero gradients at rate zero, which moves nothing.
- Options come back too: a rate that differs between saving and loading is that of the state.
"""

import os
import tempfile

import torch
import torch.distributed.checkpoint as dcp
from sklearn.datasets import load_digits
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

import clars


def network():
    model = nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 10))
    return fully_shard(model) if distributed.is_initialized() else model


def train(model, optimizer, batches):
    for images, labels in batches:
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()


def save(model, optimizer, folder):
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)


def load(model, optimizer, folder):
    weights, state = get_state_dict(model, optimizer)  # the tensors that are filled
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)


if __name__ == "__main__":
    if "RANK" in os.environ:
        distributed.init_process_group("gloo")
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    digits, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(digits[rank:1024:world]).float() / 16, torch.tensor(labels[rank:1024:world])
    batches = list(zip(images.split(64 // world), labels.split(64 // world))) * 4
    models = [network(), network()]  # which start at different weights
    optimizers = [clars.CLARS(model, lr=8.0) for model in models]
    before = cross_entropy(models[0](images), labels).item()
    folder = os.path.join(tempfile.gettempdir(), "clars-checkpoint-" + os.environ.get("TORCHELASTIC_RUN_ID", "alone"))
    train(models[0], optimizers[0], batches[:32])
    save(models[0], optimizers[0], folder)
    load(models[1], optimizers[1], folder)
    for model, optimizer in zip(models, optimizers):
        train(model, optimizer, batches[32:])
        print(f"process {rank}: loss {before:.3f} before, {cross_entropy(model(images), labels):.6f} after")
    if distributed.is_initialized():
        distributed.destroy_process_group()
