"""One run of one recipe with one seed, from where it stands to its record."""

import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from clars.errors import Fault, UserError
from clars.lab import data, seeds
from clars.lab.evaluation import Scores, recalibrate, share_buffers
from clars.lab.launching import strategy
from clars.lab.launching.division import Division, divide
from clars.lab.launching.exits import ignore_stops
from clars.lab.launching.faults import explained
from clars.lab.loading.loader import Loader, workers
from clars.lab.loading.resident import on_device
from clars.lab.runs import resume
from clars.lab.runs.jobs import Job
from clars.lab.runs.provenance import provenance
from clars.lab.runs.record import Record
from clars.lab.runs.resume import Progress, State
from clars.lab.runs.run_folder import RunFolder
from clars.lab.training import graph, init, momentum, noise, trackers
from clars.lab.training.average import Average
from clars.lab.training.batches import batches_of
from clars.lab.training.build import build_optimizer, build_schedule, require_strategy
from clars.lab.training.display import Display
from clars.lab.training.first_epoch import FirstEpoch
from clars.lab.training.head import FrozenHead
from clars.lab.training.objective import Objective, objective
from clars.lab.training.report import in_force, record_of
from clars.optim import CLARS
from clars.sharding.restore import put_weights
from clars.sharding.state import gather_weights

NOT_MEASURED = Scores(None, None, None)
CHECK_EVERY = 50  # steps between looks at the loss: each look waits for the device


@dataclass(frozen=True)
class MachineOptions:
    """What the machine and the person at it decide; nothing that changes the numbers of a run beyond rounding.

    The state to resume from is written after each epoch, and after every `checkpoint_every` steps where that is given.
    Every `noise_scale` steps a line tells the gradient noise scale; 0 stands for about a hundred lines over the run.
    With `cuda_graph`, steps are captured once and replayed.
    """

    micro_batch: int | None = None
    overwrite: bool = False
    checkpoint_every: int | None = None
    timeout: float = strategy.TIMEOUT
    noise_scale: int | None = None
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        if self.checkpoint_every is not None and self.checkpoint_every < 1:
            raise UserError(f"--checkpoint-every {self.checkpoint_every}: a number of steps above 0 is needed.")
        if self.noise_scale is not None and self.noise_scale < 0:
            raise UserError(f"--noise-scale {self.noise_scale}: a number of steps is needed, or 0 for about 100 lines.")


class Diverged(Exception):
    """The loss, or a gradient, is not finite."""


class TrainingRun:
    """A run in its folder, under the strategy that the launch asks for."""

    def __init__(self, job: Job, accelerator: Accelerator, options: MachineOptions, display: Display) -> None:
        self.job, self.accelerator, self.options, self.display = job, accelerator, options, display
        self.resolved = job.resolved
        self.recipe = recipe = job.resolved.recipe
        self.started = time.perf_counter()
        # Noted now: the code may change while it runs, and the end may have to be quick.
        self.machine = provenance(job.resolved.path, accelerator.device)
        display.begin(f"{job.resolved.short_name} seed {job.seed}")
        self.folder = RunFolder(Path(job.folder), resume.identity(job.resolved, job.seed), accelerator.is_main_process)
        if not options.overwrite:
            self.folder.refuse_finished()
        self.splits = data.load(recipe.data, evaluation=recipe.evaluation.split)
        if recipe.data.in_memory == "device":
            self.splits = on_device(self.splits, accelerator.device)
        self.division: Division = divide(
            recipe.batch_size, accelerator.num_processes, options.micro_batch, recipe.optimizer.together
        )
        self.batches = batches_of(self.splits.train, self.division, accelerator.process_index, job.seed)
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        asked = 0 if recipe.data.in_memory == "device" else recipe.data.workers
        self.workers = workers(asked, self.splits.train, processes, accelerator.device)
        self.loader = Loader(self.splits.train, self.batches, accelerator.device, self.workers, recipe.data.prefetch)
        set_seed(job.seed)
        self.objective: Objective = objective(recipe, self.splits, self.division, accelerator.device)
        self.plain: nn.Module = self.objective.network  # without the wrapper of a strategy
        self.init = init.begin(self.resolved, self.objective.trunk, self.splits)
        if self.init:
            display.tell(f"{job.folder}: begins with {self.init.checkpoint}, its head {self.init.head}")
        self.average = Average(self.resolved, self.plain)
        self.inner: Optimizer = build_optimizer(self.resolved, self.plain)
        self.head = FrozenHead(self.resolved, self.plain, self.batches.steps)
        state = State() if options.overwrite else self._load()
        steps = self.batches.steps * recipe.epochs
        every = noise.interval(options.noise_scale, state, steps, self.folder.state)
        with graph.aside(options.cuda_graph):
            self.model, self.optimizer, self.strategy = strategy.prepare(
                accelerator, self.division, self.plain, self.inner, options.timeout
            )
        self.head.check(self.strategy)
        require_strategy(recipe.optimizer, self.strategy)
        what = {"frozen_steps": self.head.steps, "noise_every": every}
        self.step = graph.step_of(self, self._step, options.cuda_graph, **what)
        self.machine |= in_force(job, self.division, self.strategy, accelerator, every, options.cuda_graph)
        self.average.begin(self.strategy, accelerator.device, state.average)
        if state == State():  # only now, when no mistake can end the run before it begins
            self.folder.clear()
            accelerator.wait_for_everyone()
        precision = accelerator.mixed_precision
        self.progress = replace(self._resume(state), noise_every=every, mixed_precision=precision)
        self.noise = noise.Noise(every, self.model, self.inner, state.noise)
        self.loss_sum = torch.tensor(self.progress.loss_sum, dtype=torch.float64)
        self.first_epoch = FirstEpoch(self.batches.steps, self.progress.first_losses)
        self.schedule: LambdaLR = build_schedule(self.resolved, self.inner, self.batches.steps, self.progress.step)

    def __call__(self) -> Record:
        """Train to the end, and write the record whatever the end is.

        Raises:
            KeyboardInterrupt, Fault: after the record says so; the same job goes on from its last whole state.
        """
        status, scores = "finished", NOT_MEASURED
        try:
            with explained():
                for epoch in range(self.progress.epoch, self.recipe.epochs):
                    loss = self._train_epoch(epoch)
                    scores = self._evaluate() if self._evaluates_after(epoch) else NOT_MEASURED
                    if scores.loss is not None and not math.isfinite(scores.loss):
                        raise Diverged  # the last step may be the one that went astray
                    self._close_epoch(epoch, loss, scores)
                if scores.top1 is None:  # the run was killed between its last epoch and its record
                    scores = _scores(self.folder.last_epoch())
        except Diverged:
            status, scores = "diverged", self._evaluate()
        except (KeyboardInterrupt, Fault):
            ignore_stops()  # a launcher sends them where another process has failed, in the midst of what follows
            self.folder.write(self._record("interrupted", scores))
            self.display.tell(f"{self.job.folder}: the same command goes on from the last saved state")
            raise
        finally:
            self.loader.close()
        return self._finish(status, scores)

    def _finish(self, status: str, scores: Scores) -> Record:
        """Leave weights and record, and take away what a resumption would need."""
        weights = self.average.state() or gather_weights(self.optimizer, self.model)
        self.noise.end()
        written = self._record(status, scores)
        self.folder.finish(written, self.objective.released(weights))
        return written

    def _train_epoch(self, epoch: int) -> float:
        """Take the steps of one epoch that are left; return the mean training loss of the whole epoch."""
        began = time.perf_counter()
        cut, now = self.division, self.progress
        self.batches.epoch, self.batches.first_step = epoch, now.step - epoch * self.batches.steps
        self.splits.train.place = (self.job.seed, epoch)
        self.model.train()
        for number, (x, y) in enumerate(self.loader, self.batches.first_step * cut.accumulation):
            self._seed(epoch, number)
            with self.accelerator.accumulate(self.model):
                self.loss_sum = self.loss_sum + self.step(*self._inputs(x, y)).double() / cut.accumulation
            if self.accelerator.sync_gradients:
                self.schedule.step()
                self._await_device()
                seconds = self.progress.train_seconds + time.perf_counter() - began
                self.progress = replace(self.progress, step=self.progress.step + 1, train_seconds=seconds)
                self._after_step()
                began = time.perf_counter()
        return self._mean_loss_sum() / self.batches.steps

    def _await_device(self) -> None:
        """Wait for a GPU where what follows a step would wait for it, uncounted: its time is training's."""
        looks = CHECK_EVERY, self.batches.steps, self.options.checkpoint_every, self.recipe.layer_statistics
        step = self.progress.step + 1
        if self.accelerator.device.type == "cuda" and any(n and step % n == 0 for n in (*looks, self.noise.every)):
            torch.cuda.synchronize(self.accelerator.device)

    def _seed(self, epoch: int, number: int) -> None:
        """Begin all draws of a micro-batch anew, so that they depend on nothing but seed and place in the run."""
        place = (self.job.seed, epoch, number, self.accelerator.process_index)
        seeds.seed_step(self.accelerator.device, *place)
        if isinstance(self.inner, CLARS):
            self.inner.norms.estimator.seed(seeds.derived(*place, 1))

    def _inputs(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        device = self.accelerator.device
        return self.objective.inputs(x.to(device, non_blocking=True), y.to(device, non_blocking=True))

    def _step(self, *inputs: Tensor) -> Tensor:
        """Take a micro-batch, and with the last one of a batch the optimizer's step; return its loss."""
        loss = self._forward_backward(*inputs)
        if self.accelerator.sync_gradients:
            self.head.before_step(self.progress.step)
            self.noise.before_step()
            if (most := self.recipe.optimizer.clip_norm) is not None:
                self.accelerator.clip_grad_norm_(self.model.parameters(), most)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def _forward_backward(self, *inputs: Tensor) -> Tensor:
        loss = self.objective.loss(self.model, *inputs)
        self.accelerator.backward(loss)
        return loss.detach()

    def _after_step(self) -> None:
        step, every = self.progress.step, self.options.checkpoint_every
        self.average.update(self.plain, step)
        self.first_epoch.note(step, self.loss_sum)
        self._log_layers(step)
        if self.accelerator.is_main_process and (line := self.noise.line(step)):
            self.folder.log_noise(line)
        self.display.step(step, self.batches.steps * self.recipe.epochs)
        due = every is not None and step % every == 0
        if due or step % CHECK_EVERY == 0:
            loss_sum = self._mean_loss_sum()
            if due and step % self.batches.steps:  # at the end of an epoch, the state is saved after the evaluation
                sums = self.first_epoch.reduced(self.accelerator) if not self.progress.epoch else ()
                self._save(replace(self.progress, loss_sum=loss_sum, first_losses=sums))

    def _mean_loss_sum(self) -> float:
        """Return the sum over the epoch's steps of their mean losses, or raise Diverged on all processes."""
        mean = self.accelerator.reduce(self.loss_sum.to(self.accelerator.device), "mean").item()
        if not math.isfinite(mean) or strategy.skipped_a_step(self.accelerator, self.model):
            raise Diverged
        return mean

    def _evaluates_after(self, epoch: int) -> bool:
        return (epoch + 1) % self.recipe.evaluation.every == 0 or epoch + 1 == self.recipe.epochs

    def _evaluate(self) -> Scores:
        settings = self.recipe.evaluation
        plain = self.average.network(self.plain)
        share_buffers(plain)
        if settings.batch_norm == "recalibrated":
            recalibrate(self.accelerator, plain, self.splits.train, settings.batch_size, self.workers)
        return self.objective.scores(self.accelerator, self.average.network(self.model), self.splits, self.workers)

    def _close_epoch(self, epoch: int, train_loss: float, scores: Scores) -> None:
        now = self.progress
        if scores.top1 is not None and (now.best_top1 is None or scores.top1 > now.best_top1):
            now = replace(now, best_top1=scores.top1, best_epoch=epoch + 1)
        self.progress = replace(
            now, epoch=epoch + 1, loss_sum=0.0, first_losses=(), wall_seconds=now.wall_seconds + self._lap()
        )
        self.loss_sum = torch.zeros_like(self.loss_sum)
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
        first = {} if epoch else {"first_epoch_losses": self.first_epoch.losses(self.accelerator)}
        self.accelerator.log({key: value for key, value in line.items() if value is not None}, step=now.step)
        self.display.epoch(epoch + 1, self.recipe.epochs, train_loss, scores.top1)
        self.folder.log_epoch(line | first)
        self._save(self.progress)

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
        norms = getattr(self.inner, "norms", None)
        common = {"step": step} if norms is None else {"step": step, "estimator": norms.estimator.label}
        self.folder.log_layers([{**common, "layer": name, **stats._asdict()} for name, stats in rows])
        trackers.histograms(self.accelerator.trackers, [stats._asdict() for _, stats in rows], step)

    def _save(self, progress: Progress) -> None:
        """Write the state to go on from; every process takes part, as each may hold a part of it."""
        self.progress = replace(progress, wall_seconds=progress.wall_seconds + self._lap())
        share_buffers(self.plain)
        whole = gather_weights(self.optimizer, self.model), momentum.gather(self.optimizer, self.model, self.inner)
        scale = strategy.loss_scale(self.accelerator, self.optimizer)
        self.folder.save(
            State(*whole, replace(self.progress, loss_scale=scale), self.average.state(), noise=self.noise.state())
        )

    def _load(self) -> State:
        """Read the state to go on from, and put its weights into the model before a strategy cuts that."""
        state = self.folder.load()
        strategy.same_everywhere(self.accelerator, state.progress.step, self.job.folder)
        progress = state.progress
        progress.check(self.batches.steps, self.recipe.epochs, self.folder.state)
        progress.require_precision(self.accelerator.mixed_precision, self.folder.state)
        present = self.plain.state_dict()
        moments = momentum.expected(self.plain, self.inner) if state.model else {}
        measured = noise.expected(self.plain, self.inner) if progress.noise_every else {}
        resume.check_tensors(state, present, moments, self.recipe.ema is not None, measured, self.folder.state)
        if state.model:
            self.plain.load_state_dict(state.model)
            self.display.tell(f"{self.job.folder}: going on after epoch {progress.epoch}, step {progress.step}")
        return state

    def _resume(self, state: State) -> Progress:
        """Give the optimizer its state back, now that a strategy may have cut what it steps."""
        if state.model:
            put_weights(self.optimizer, self.model, state.model)
            momentum.put(self.optimizer, self.model, self.inner, state.momentum, state.progress.step)
            strategy.put_loss_scale(self.accelerator, self.optimizer, state.progress.loss_scale)
        return state.progress

    def _record(self, status: str, scores: Scores) -> Record:
        self.progress = replace(self.progress, wall_seconds=self.progress.wall_seconds + self._lap())
        return record_of(self.job, self.division, self.progress, scores, status, self.machine, self.init)


def _scores(line: dict[str, object]) -> Scores:
    return Scores(line["top1"], line["top5"], line["val_loss"])
