"""CLARS in lightning.Trainer: `configure_optimizers` makes it of the network, or of the whole module.

To mind:
- accumulate_grad_batches, gradient_clip_val, precision="bf16-mixed" and ckpt_path need nothing of their own.
- Clipping shortens the step of CLARS and leaves the layers' rates as they are.
- Lightning runs the whole of a training step inside `optimizer.step(closure)`. What `layer_stats()` tells of the step
  is there in `on_train_batch_end`.
- What is frozen by then is not optimised; a callback that unfreezes layers later needs a new optimizer.
"""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import clars


class Classifier(lightning.LightningModule):
    def __init__(self, network, lr=8.0, whole=False):
        super().__init__()
        self.network, self.lr, self.whole = network, lr, whole

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, index):
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def configure_optimizers(self):
        return clars.CLARS(self if self.whole else self.network, lr=self.lr)


def train(module, loader, *, resume=None, **options):
    """Train; the options are those of lightning.Trainer."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(accelerator="cpu", devices=1, **quiet, **options)
    trainer.fit(module, loader, ckpt_path=resume)
    return trainer


if __name__ == "__main__":
    digits, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(digits[:512]).float().view(-1, 1, 8, 8) / 16, torch.tensor(labels[:512])
    network = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
    print(f"loss {nn.functional.cross_entropy(network(images), labels):.3f} before")
    loader = DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True)
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0, "precision": "bf16-mixed"}
    train(Classifier(network), loader, max_epochs=10, enable_checkpointing=False, **options)
    print(f"loss {nn.functional.cross_entropy(network.eval()(images), labels):.3f} after")
