"""CLARS in a loop of plain accelerate, with `accumulate`, `clip_grad_norm_` and saved states.

To mind:
- The optimizer is made of the model before `prepare`, as any other is. Under FSDP2 and DeepSpeed, `clars.bind` follows.
- `accelerator.backward` divides the loss by the number of accumulated batches. CLARS's norms are of the gradient as it
  is, so nothing is to be told.
- `zero_grad` and `step` stand in the loop for every batch; accelerate leaves them out while it accumulates.
"""

import timm
import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import clars


def train(model, loader, epochs, *, lr=8.0, clip=1.0, load=None, save=None, **options):
    """Train, from a saved state if there is one to load; the options are those of Accelerator."""
    accelerator = Accelerator(cpu=True, **options)
    optimizer = clars.CLARS(model, lr=lr)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if load:
        accelerator.load_state(load)
    for _ in range(epochs):
        for images, labels in loader:
            with accelerator.accumulate(model):
                accelerator.backward(cross_entropy(model(images), labels))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
    if save:
        accelerator.save_state(save)
    return accelerator.unwrap_model(model)


if __name__ == "__main__":
    digits, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(digits[:512]).float().view(-1, 1, 8, 8) / 16, torch.tensor(labels[:512])
    model = timm.create_model("resnet8", in_chans=1, num_classes=10)
    print(f"loss {cross_entropy(model(images), labels):.3f} before")
    loader = DataLoader(TensorDataset(images, labels), batch_size=32, shuffle=True)
    model = train(model, loader, epochs=4, gradient_accumulation_steps=2)
    print(f"loss {cross_entropy(model.eval()(images), labels):.3f} after")
