"""CLARS in a loop of timm's parts: NativeScaler with clip_grad, a scheduler, Mixup and ModelEmaV3.

To mind:
- The scaler unscales the gradients by itself; CLARS notices and unscales its norms alike. NativeScaler(device="cpu") is
  for processors.
- timm's schedulers multiply each layer's own rate. warmup_lr_init and lr_min are the same number for all layers, on the
  scale of CLARS's lr.
- Mixup leaves the number of images as it is: what counts as an example is the mixed one.
- ModelEmaV3 copies the model. The copy is not tracked, whether made before the optimizer or after.
"""

import timm
import torch
from sklearn.datasets import load_digits
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, NativeScaler
from torch.nn.functional import cross_entropy

import clars


def train(model, batches, epochs, *, lr=8.0, clip_grad=1.0, clip_mode="norm", mixup=None):
    """Train on a list of batches; return the model that is the average over the steps, and the optimizer."""
    optimizer = clars.CLARS(model, lr=lr)
    scheduler = CosineLRScheduler(optimizer, t_initial=epochs, warmup_t=1, warmup_lr_init=0.1 * lr)
    scaler, average = NativeScaler(device="cpu"), ModelEmaV3(model, decay=0.9)
    criterion = SoftTargetCrossEntropy() if mixup else cross_entropy
    for epoch in range(epochs):
        scheduler.step(epoch)
        for images, labels in batches:
            if mixup:
                images, labels = mixup(images.clone(), labels)  # it mixes in place
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            scaler(loss, optimizer, clip_grad=clip_grad, clip_mode=clip_mode, parameters=model.parameters())
            average.update(model)
    return average.module, optimizer


if __name__ == "__main__":
    digits, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(digits[:512]).float().view(-1, 1, 8, 8) / 16, torch.tensor(labels[:512])
    model = timm.create_model("resnet8", in_chans=1, num_classes=10)
    print(f"loss {cross_entropy(model(images), labels):.3f} before")
    batches = list(zip(images.split(64), labels.split(64)))
    average, _ = train(model, batches, epochs=8, mixup=Mixup(mixup_alpha=0.2, num_classes=10))
    print(f"loss {cross_entropy(model.eval()(images), labels):.3f} after")
    print(f"loss {cross_entropy(average.eval()(images), labels):.3f} with the averaged weights")
