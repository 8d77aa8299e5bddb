"""CLARS's state through torch.distributed.checkpoint: saved by one number of processes, loaded by another.

By itself this runs in one process; by `torchrun --nproc-per-node 2` in two, which cut the layers (FSDP2). To mind:
- Of an optimizer that has taken no step, the helpers take one with zero gradients at rate zero, which moves nothing.
- Options come back too: a rate that differs between saving and loading is that of the state.
"""

import os

import torch
from sklearn.datasets import load_digits
from torch import distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import clars


def network():
    model = nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 10))
    return fully_shard(model) if distributed.is_initialized() else model


def train(model, optimizer, batches):
    for images, labels in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    return loss.item()


def save(model, optimizer, folder):
    weights, state = get_state_dict(model, optimizer)
    checkpoint.save({"model": weights, "optimizer": state}, checkpoint_id=folder)


def load(model, optimizer, folder):
    weights, state = get_state_dict(model, optimizer)  # the tensors that are filled
    checkpoint.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)


if __name__ == "__main__":
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        distributed.init_process_group("gloo")
    images, labels = (torch.tensor(each[rank:512:world]).split(64 // world) for each in load_digits(return_X_y=True))
    batches = [(image.float() / 16, label) for image, label in zip(images, labels)]
    pairs = [(model, clars.CLARS(model, lr=8.0)) for model in (network(), network())]
    folder = "runs/checkpoint-" + os.environ.get("TORCHELASTIC_RUN_ID", "alone")
    before = train(*pairs[0], batches)
    save(*pairs[0], folder)
    load(*pairs[1], folder)
    for pair in pairs:
        print(f"process {rank}: loss {before:.6f} when it was saved, {train(*pair, batches * 4):.6f} at last")
    if world > 1:
        distributed.destroy_process_group()
