"""One run of one recipe with one seed, from where it stands to its record."""

import math
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from clars import data, models
from clars.errors import UserError
from clars.optim import CLARS
from clars.recipes.load import Resolved
from clars.results import metrics, record
from clars.results.files import replacing
from clars.results.jobs import Job
from clars.results.provenance import provenance
from clars.results.record import Record
from clars.training import resume
from clars.training.batches import Division, GlobalBatches, divide, epoch_seed
from clars.training.build import build_optimizer, build_schedule
from clars.training.display import Display
from clars.training.evaluation import Scores, evaluate, recalibrate

WEIGHTS = "model.safetensors"
LAYERS = "layers.jsonl"
CHECK_EVERY = 50  # steps between looks at the loss: each look waits for the device


@dataclass(frozen=True)
class Options:
    """What the machine and the person at it decide; nothing that changes the numbers of a run."""

    micro_batch: int | None = None
    overwrite: bool = False


class Diverged(Exception):
    """The loss is not finite."""


class Run:
    """A run in its folder: `run.json`, `metrics.jsonl`, `layers.jsonl` where asked for, `model.safetensors`."""

    def __init__(self, job: Job, accelerator: Accelerator, options: Options, display: Display) -> None:
        self.job, self.accelerator, self.display = job, accelerator, display
        self.resolved: Resolved = job.resolved
        self.recipe = job.resolved.recipe
        self.started = time.perf_counter()
        if not options.overwrite:
            _refuse_finished(job.folder)
        recipe = self.recipe
        self.splits = data.load(recipe.data, evaluation=recipe.evaluation.split)
        self.division: Division = divide(recipe.batch_size, accelerator.num_processes, options.micro_batch)
        self.batches = GlobalBatches(len(self.splits.train), self.division, accelerator.process_index, job.seed)
        set_seed(job.seed)
        model = models.create(recipe.model, self.splits.num_classes, recipe.data.channels, recipe.data.image_size)
        optimizer = build_optimizer(self.resolved, model)
        accelerator.gradient_accumulation_steps = self.division.accumulation
        self.model: nn.Module
        self.optimizer: Optimizer
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.inner = self.optimizer.optimizer
        if hasattr(self.inner, "grad_scaler"):
            self.inner.grad_scaler = accelerator.scaler
        if options.overwrite:
            self._clear()
        self.progress = self.resumed = self._resume()
        self.schedule: LambdaLR = build_schedule(self.resolved, self.inner, self.batches.steps, self.progress.step)

    @property
    def plain(self) -> nn.Module:
        """The model itself, without the wrapper of a strategy."""
        return self.accelerator.unwrap_model(self.model)

    def __call__(self) -> Record:
        """Train to the end, and write the record whatever the end is.

        Raises:
            KeyboardInterrupt: after the record says so; the same job goes on from its last whole epoch.
        """
        status, scores = "finished", Scores(None, None, None)
        try:
            for epoch in range(self.progress.epoch, self.recipe.epochs):
                loss = self._train_epoch(epoch)
                scores = self._evaluate()
                if not math.isfinite(scores.loss):  # the last step may be the one that went astray
                    raise Diverged
                self._close_epoch(epoch, loss, scores)
            if scores.top1 is None:  # the run was killed between its last epoch and its record
                scores = self._evaluate()
        except Diverged:
            status, scores = "diverged", self._evaluate()
        except KeyboardInterrupt:
            self._write_record("interrupted", scores)
            self.display.tell(f"{self.job.folder}: the same command goes on after epoch {self.progress.epoch}")
            raise
        return self._finish(status, scores)

    def _finish(self, status: str, scores: Scores) -> Record:
        """Leave weights and record, and take away what a resumption would need."""
        if self.accelerator.is_main_process:
            tensors = {name: value.detach().cpu().contiguous() for name, value in self.plain.state_dict().items()}
            with replacing(self.job.folder / WEIGHTS) as temporary:
                save_file(tensors, temporary, {"format": "pt"})
        written = self._write_record(status, scores)
        if self.accelerator.is_main_process:
            resume.clear(self.job.folder)
        return written

    def _train_epoch(self, epoch: int) -> float:
        """Take the steps of one epoch; return the mean training loss.

        Every source of chance is seeded anew, so that an epoch depends on seed and number alone.
        """
        began = time.perf_counter()
        self.batches.epoch = epoch
        set_seed(epoch_seed(self.job.seed, epoch), device_specific=True)
        if isinstance(self.inner, CLARS):
            processes = self.accelerator.num_processes
            self.inner.norms.estimator.seed(
                epoch_seed(self.job.seed, epoch) * processes + self.accelerator.process_index
            )
        workers = self.recipe.data.workers
        loader = DataLoader(self.splits.train, batch_sampler=self.batches, collate_fn=data.collate, num_workers=workers)
        losses: list[Tensor] = []
        step = self.progress.step
        self.model.train()
        for x, y in loader:
            with self.accelerator.accumulate(self.model):
                losses.append(self._forward_backward(x, y))
                self.optimizer.step()
                self.optimizer.zero_grad()
            if not self.accelerator.sync_gradients:
                continue
            self.schedule.step()
            step += 1
            self._log_layers(step)
            self.display.step(step, self.batches.steps * self.recipe.epochs)
            seconds = self.progress.train_seconds + time.perf_counter() - began
            self.progress, began = replace(self.progress, step=step, train_seconds=seconds), time.perf_counter()
            if step % CHECK_EVERY == 0:
                self._mean(losses)
        return self._mean(losses)

    def _forward_backward(self, x: Tensor, y: Tensor) -> Tensor:
        device = self.accelerator.device
        logits = self.model(x.to(device, non_blocking=True))
        loss = F.cross_entropy(logits, y.to(device, non_blocking=True), label_smoothing=self.recipe.label_smoothing)
        self.accelerator.backward(loss)
        return loss.detach()

    def _mean(self, losses: list[Tensor]) -> float:
        """Return the mean loss over all processes, or raise Diverged on all of them."""
        mean = self.accelerator.reduce(torch.stack(losses).mean(), "mean").item()
        if not math.isfinite(mean):
            raise Diverged
        return mean

    def _evaluate(self) -> Scores:
        settings, workers = self.recipe.evaluation, self.recipe.data.workers
        if settings.batch_norm == "recalibrated":
            recalibrate(self.accelerator, self.plain, self.splits.train, settings.batch_size, workers)
        return evaluate(self.accelerator, self.model, self.splits.test, settings.batch_size, workers)

    def _close_epoch(self, epoch: int, train_loss: float, scores: Scores) -> None:
        now = self.progress
        if now.best_top1 is None or scores.top1 > now.best_top1:
            now = replace(now, best_top1=scores.top1, best_epoch=epoch + 1)
        scaler = self.accelerator.scaler
        self.progress = replace(
            now,
            epoch=epoch + 1,
            wall_seconds=now.wall_seconds + self._lap(),
            loss_scale=scaler.get_scale() if scaler else None,
        )
        line = {
            "step": now.step,
            "epoch": epoch + 1,
            "lr": self.schedule.get_last_lr()[0],
            "train_loss": train_loss,
            "val_loss": scores.loss,
            "top1": scores.top1,
            "top5": scores.top5,
            "seconds": self.progress.wall_seconds,
        }
        self.accelerator.log({key: value for key, value in line.items() if value is not None}, step=now.step)
        self.display.epoch(train_loss, scores.top1)
        if self.accelerator.is_main_process:
            self._epoch_lines.append(line)
            path = self.job.folder / resume.FILE
            resume.save(path, self.plain, self.inner, self.progress, resume.identity(self.resolved, self.job.seed))

    def _lap(self) -> float:
        """Return the seconds since the last lap."""
        now = time.perf_counter()
        self.started, lap = now, now - self.started
        return lap

    def _log_layers(self, step: int) -> None:
        every = self.recipe.layer_statistics
        if not every or step % every or not self.accelerator.is_main_process or not hasattr(self.inner, "layer_stats"):
            return
        rows = self.inner.layer_stats().items()
        self._layer_lines.append(*({"step": step, "layer": name, **stats._asdict()} for name, stats in rows))

    def _resume(self) -> resume.Progress:
        path = self.job.folder / resume.FILE
        if not path.exists():
            return resume.Progress()
        progress = resume.load(path, self.plain, self.inner, resume.identity(self.resolved, self.job.seed))
        self.display.tell(f"{self.job.folder}: going on after epoch {progress.epoch}")
        if self.accelerator.scaler and progress.loss_scale:
            self.accelerator.scaler.update(progress.loss_scale)
        return progress

    @cached_property
    def _epoch_lines(self) -> metrics.Metrics:
        """The file of epochs, opened without those of a part that is trained again."""
        return metrics.Metrics(self.job.folder / metrics.FILE, resume_at=self.resumed.epoch or None)

    @cached_property
    def _layer_lines(self) -> metrics.Metrics:
        """The file of layer statistics, likewise."""
        return metrics.Metrics(self.job.folder / LAYERS, "step", resume_at=self.resumed.step or None)

    def _clear(self) -> None:
        """Take away the run that is replaced."""
        if self.accelerator.is_main_process:
            for name in (record.FILE, metrics.FILE, LAYERS, WEIGHTS, resume.FILE):
                (self.job.folder / name).unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()

    def _write_record(self, status: str, scores: Scores) -> Record:
        resolved, recipe, now, cut = self.resolved, self.recipe, self.progress, self.division
        best = None if now.best_top1 is None else {"top1": now.best_top1, "epoch": now.best_epoch}
        seen = now.step * recipe.batch_size
        written = Record(
            recipe=resolved.name,
            version=resolved.version,
            recipe_sha256=resolved.sha256,
            overrides=list(resolved.overrides),
            seed=self.job.seed,
            **provenance(resolved.path, self.accelerator.device),
            threads=torch.get_num_threads(),
            strategy=strategy(self.accelerator),
            world_size=cut.world_size,
            global_batch_size=cut.global_batch,
            micro_batch_size=cut.micro_batch,
            accumulation=cut.accumulation,
            steps=now.step,
            epochs=now.epoch,
            settings=recipe.model_dump(mode="json"),
            optimizer=recipe.optimizer.model_dump(mode="json"),
            schedule={**recipe.schedule.model_dump(mode="json"), "peak_rate": resolved.peak_rate},
            final=scores._asdict(),
            best=best,
            wall_seconds=now.wall_seconds + self._lap(),
            examples_per_second=seen / now.train_seconds if now.train_seconds else None,
            status=status,
        )
        if self.accelerator.is_main_process:
            written.write(self.job.folder / record.FILE)
        return written


def strategy(accelerator: Accelerator) -> str:
    """Return the name of the strategy in force.

    Raises:
        UserError: parameters would be sharded, which the layer-wise optimizers of this version do not handle.
    """
    name = accelerator.distributed_type.value
    if name == "NO":
        return "single"
    if name in ("MULTI_CPU", "MULTI_GPU"):
        return "ddp"
    raise UserError(f"{name} shards parameters, which is not supported. Use configs/accelerate/cpu.yaml or ddp.yaml.")


def _refuse_finished(folder: Path) -> None:
    path = folder / record.FILE
    if path.exists() and Record.read(path).status != "interrupted":
        raise UserError(f"{folder} holds a run that is over. Choose another --out, or replace it by --overwrite.")
