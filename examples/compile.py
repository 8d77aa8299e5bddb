"""CLARS under torch.compile, with a last batch that is smaller: the norms are formed in the compiled graphs.

To mind:
- The optimizer takes the model, compiled or not, before or after.
- The norms are part of the graphs, so the first steps compile anew where the optimizer was made after the first call.
- Each size of batch compiles once in training mode and once in evaluation mode, 8 times in all by torch's default.
- Activation checkpointing inside of a compiled model is refused, as its second forward is hidden there.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import clars


def train(model, batches, epochs, *, lr=8.0, backend=None):
    """Train the model, compiled if a backend is named."""
    optimizer = clars.CLARS(model, lr=lr)
    running = torch.compile(model, backend=backend) if backend else model
    for _ in range(epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            cross_entropy(running(images), labels).backward()
            optimizer.step()
    return optimizer


if __name__ == "__main__":
    digits, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(digits[:512]).float().view(-1, 1, 8, 8) / 16, torch.tensor(labels[:512])
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
    print(f"loss {cross_entropy(model(images), labels):.3f} before")
    batches = list(zip(images.split(96), labels.split(96)))  # 28 of 64 images, and one of 5
    train(model, batches, epochs=4, backend="aot_eager")  # "inductor", the default elsewhere, needs a compiler
    print(f"loss {cross_entropy(model.eval()(images), labels):.3f} after")
