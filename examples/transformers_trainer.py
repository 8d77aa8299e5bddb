"""CLARS in transformers.Trainer, for a ViT and a ResNet: the optimizer is made with the model and handed over.

To mind:
- The Trainer's own learning_rate and weight_decay are not used: the optimizer has its own.
- A second None has the Trainer make its schedule, which falls linearly to zero unless lr_scheduler_type says otherwise.
- The Trainer clips to max_grad_norm=1.0 unless told otherwise (0 is none). Clipping shortens the step of CLARS and
  leaves the layers' rates as they are.
- gradient_accumulation_steps divides the loss of models that do so themselves, such as ViT, and of those that take no
  further arguments. ResNet takes them and ignores them, so its loss is added up undivided. CLARS divides by norms that
  grow with the loss, so it hardly notices; loss_is_scaled_for_ga=False in a Trainer of one's own puts it right.
- Before a run is resumed, the weights are best loaded by from_pretrained(checkpoint): ViT saves them under other names
  than the Trainer looks for, and starts anew with no more than a warning, under any optimizer.
"""

import tempfile

import torch
from sklearn.datasets import load_digits
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

import clars


def vit():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    shapes = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10}
    return ViTForImageClassification(ViTConfig(**sizes, **shapes, initializer_range=0.1))


def resnet():
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**sizes, num_channels=1, num_labels=10))


def train(model, dataset, folder, *, lr=8.0, resume=None, make_trainer=Trainer, **options):
    """Train on a data set of dictionaries; the options are those of TrainingArguments."""
    optimizer = clars.CLARS(model, lr=lr)
    arguments = TrainingArguments(folder, use_cpu=True, report_to="none", disable_tqdm=True, **options)
    trainer = make_trainer(model, arguments, train_dataset=dataset, optimizers=(optimizer, None))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


if __name__ == "__main__":
    every = list(zip(*load_digits(return_X_y=True)))[:512]
    dataset = [{"pixel_values": torch.tensor(x).float().view(1, 8, 8) / 16, "labels": y} for x, y in every]
    for model, lr in ((vit(), 32.0), (resnet(), 8.0)):
        with tempfile.TemporaryDirectory() as folder:
            options = {"num_train_epochs": 8, "per_device_train_batch_size": 64, "save_strategy": "no"}
            trainer = train(model, dataset, folder, lr=lr, **options, logging_steps=10, max_grad_norm=0.0)
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        print(f"{type(model).__name__}: loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
