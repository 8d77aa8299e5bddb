"""Training by any strategy in real processes, many cases per launch: what the tests of this folder compare."""

import contextlib
import os
import sys
import time
import traceback
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from losses import squared_loss
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.modules import batchnorm
from torch.nn.parallel import DistributedDataParallel

import clars
from clars.lab.training import momentum
from clars.sharding.find import unwrapped
from clars.sharding.state import gather_weights

STEPS, BATCH = 10, 48
TIMEOUT = 400.0  # seconds for all cases of a launch
# Processes come from one that has loaded what takes ten seconds, and has run nothing.
FORKS, PRELOADED = "forkserver", ["timm", "clars", "torch.distributed.fsdp", "accelerate.utils"]


@dataclass(frozen=True)
class Case:
    """One training: the strategy, and what is done otherwise."""

    strategy: str
    method: str = "CLARS"
    accumulation: int = 1
    clip: float = 0.0
    zero: dict = field(default_factory=dict, hash=False)
    config: dict = field(default_factory=dict, hash=False)
    options: dict = field(default_factory=dict, hash=False)
    steps: tuple[int, int] = (0, STEPS)
    state: str = ""  # a file of weights and momentum to begin with
    norm: str = ""  # "batch" or "running", for a network with batch normalisation
    windows: bool = False  # whether the network has windows, expressions of parameters, and what is used twice
    born_cut: bool = False  # whether the model is made under deepspeed.zero.Init
    merge: bool = False  # the optimizer's groups
    precision: str = "float32"  # bfloat16, float16 (of ZeRO) or autocast
    skipped: frozenset = frozenset()  # steps
    early: bool = False  # whether the momentum is put before the strategy cuts the parameters, or after

    def alone(self) -> "Case":
        """The same in one process."""
        return replace(self, strategy="single", zero={}, config={}, merge=False, born_cut=False, precision="float32")


class Network(nn.Module):
    """Layers of awkward sizes: odd ones, fewer elements than processes, a single bias, frozen, not always used."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 5, 3), nn.GroupNorm(1, 5)
        self.frozen = nn.Conv2d(5, 5, 1).requires_grad_(False)
        self.seldom = nn.Conv2d(5, 5, 1, bias=False)
        self.middle, self.small, self.last = nn.Linear(45, 7), nn.Linear(7, 1), nn.Linear(1, 3, bias=False)

    def forward(self, x, seldom=True):
        x = nn.functional.relu(self.norm(self.conv(x)), inplace=True)
        x = self.frozen(x)
        if seldom:
            x = x + self.seldom(x)
        return self.last(self.small(self.middle(x.flatten(1)).tanh()))


class OnProcessors(torch.autograd.Function):
    """What torch.nn.SyncBatchNorm calls, which torch has on accelerators only."""

    @staticmethod
    def forward(ctx, x, weight, bias, mean, variance, eps, momentum, group, world):
        sums = torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))])
        distributed.all_reduce(sums)
        ctx.count = world * x[:, 0].numel()
        mean, squares = (sums / ctx.count)[:, None, :, None, None]
        ctx.scale = (squares - mean.square() + eps).rsqrt()
        normal = (x - mean) * ctx.scale
        ctx.save_for_backward(normal, weight)
        return normal * weight[:, None, None] + bias[:, None, None]

    @staticmethod
    def backward(ctx, gy):
        normal, weight = ctx.saved_tensors
        own = torch.stack([gy.sum((0, 2, 3)), (gy * normal).sum((0, 2, 3))])
        distributed.all_reduce(sums := own.clone())
        bias, slope = (sums / ctx.count)[:, None, :, None, None]
        gx = (gy - bias - normal * slope) * ctx.scale * weight[:, None, None]
        return gx, own[1], own[0], *[None] * 6


class Synchronised(nn.BatchNorm2d):
    def forward(self, x):
        if not distributed.is_initialized():
            return super().forward(x)
        others = (None, None, self.eps, 0.1, None, distributed.get_world_size())
        return batchnorm.sync_batch_norm.apply(x, self.weight, self.bias, *others)


class Normalised(nn.Sequential):
    """Batch normalisation by the statistics of all processes, or by the running ones."""

    def __init__(self, norm):
        norm = nn.BatchNorm2d(5).eval() if norm == "running" else Synchronised(5, track_running_stats=False)
        super().__init__(nn.Conv2d(2, 5, 3, bias=False), norm, nn.ReLU(), nn.Flatten(), nn.Linear(45, 3))

    def forward(self, x, seldom=True):
        return super().forward(x)


class Windows(nn.Module):
    """Pixels as tokens: windows in dimension 0, a bias from a table, attention, tied weights, a slow function."""

    def __init__(self):
        super().__init__()
        self.embed, self.position = nn.Linear(2, 4), nn.Parameter(torch.randn(1, 25, 4))
        self.twice, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.qkv, self.table = nn.Linear(4, 12), nn.Parameter(torch.randn(3))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.mixing, self.last = nn.Parameter(torch.randn(4, 3)), nn.Linear(4, 4, bias=False)
        self.last.weight = self.twice.weight

    def forward(self, x, seldom=True):
        x = self.embed(x.flatten(2).mT) + self.position
        rows = self.norm(x).reshape(-1, 5, 4)
        q, k, v = self.qkv(rows).chunk(3, -1)
        bias = self.table[torch.arange(25).view(5, 5) % 3].sigmoid()
        x = x + ((q @ k.mT + bias).softmax(-1) @ v).view(x.shape)
        if seldom:
            x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.last(self.twice(x).tanh() + self.twice(x.mean(1, keepdim=True)))
        return torch.einsum("btd,dk->bk", x, self.mixing) / 25


def network(case):
    torch.manual_seed(0)
    if case.windows:
        return Windows()
    return Normalised(case.norm) if case.norm else Network()


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(BATCH, 2, 5, 5, generator=generator) for _ in range(STEPS)]


def train(case: Case, rank: int = 0, world: int = 1) -> dict:
    """Return weights and momentum, whole, in the first process, and each step's statistics by layer in all."""
    with contextlib.ExitStack() as stack:
        if case.born_cut:
            import deepspeed

            stack.enter_context(deepspeed.zero.Init(config_dict_or_path=config_of(case)))
        model = network(case)
    optimizer = make(case, model)
    if case.merge:
        optimizer.merge_groups()
    state = torch.load(case.state) if case.state else None
    if state:
        model.load_state_dict(state["weights"])
        if case.early:
            momentum.put(optimizer, model, optimizer, state["momentum"], case.steps[0])
    take = {"single": plain, "ddp": plain, "fsdp2": fsdp2, "hsdp": fsdp2}.get(case.strategy, zero)
    steps, wrapped, outer = take(case, model, optimizer)
    inner = list(unwrapped(outer))[-1]
    if state and not case.early:
        momentum.put(outer, wrapped, inner, state["momentum"], case.steps[0])
    stats, collectives = [], []
    for number, batch in list(enumerate(batches()))[slice(*case.steps)]:
        parts = batch.view(case.accumulation, world, -1, *batch.shape[1:])[:, rank]
        if number in case.skipped:
            stats.append({})
            continue
        # without gradients, torch's SGD lets layers roll on under ZeRO; ours leaves them alone, as in one process
        with Collectives() as counted:
            steps(list(parts), number % 3 != 1 or case.method == "SGD")
        collectives.append(counted.bytes)
        if hasattr(optimizer, "layer_stats"):
            stats.append({name: row._asdict() for name, row in optimizer.layer_stats().items()})
    whole = {"weights": gather_weights(outer, wrapped), "momentum": momentum.gather(outer, wrapped, inner)}
    return whole | {"stats": stats, "collectives": collectives}


class Collectives:
    """Lists the bytes of each collective that the package calls while this is entered."""

    NAMES = ("all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter", "barrier")

    def __enter__(self):
        self.bytes, self.before = [], {name: getattr(distributed, name) for name in self.NAMES}
        for name, function in self.before.items():
            setattr(distributed, name, partial(self.call, function))
        return self

    def call(self, function, *args, **kwargs):
        if sys._getframe(1).f_globals["__name__"].startswith("clars."):
            self.bytes.append(args[0].nbytes)
        return function(*args, **kwargs)

    def __exit__(self, *_):
        for name, function in self.before.items():
            setattr(distributed, name, function)


def make(case, model):
    if case.method == "SGD":
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.SGD(trained, lr=0.05, momentum=0.9, nesterov=True)
    options = {"lr": 2.0, "weight_decay": 0.01, "trust_coefficient": 0.02}
    if case.method == "LAMB":
        options = {"lr": 0.02, "weight_decay": 0.01}
    return getattr(clars, case.method)(model, **(options | case.options))


def bind(optimizer, model):
    if isinstance(optimizer, clars.optim.layerwise.LayerwiseOptimizer):
        clars.bind(optimizer, model)


FP16 = {"enabled": True, "initial_scale_power": 20, "loss_scale_window": 2, "hysteresis": 1}
ENGINES = {"bfloat16": {"bf16": {"enabled": True}}, "float16": {"fp16": FP16}}


def in_precision(case, model, seldom):
    """Return the model as a function of its input, computed in the case's precision."""
    if case.precision == "autocast":

        def forward(x):
            with torch.autocast("cpu", torch.bfloat16):
                return model(x, seldom)

        return lambda x: forward(x).float()
    dtype = getattr(torch, case.precision) if case.strategy.startswith("zero") else torch.float32
    return lambda x: model(x.to(dtype), seldom).float()


def plain(case, model, optimizer):
    wrapped = DistributedDataParallel(model, find_unused_parameters=True) if case.strategy == "ddp" else model

    def step(parts, seldom):
        optimizer.zero_grad()
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            with contextlib.nullcontext() if last or case.strategy == "single" else wrapped.no_sync():
                (squared_loss(in_precision(case, wrapped, seldom), part) / len(parts)).backward()
        if case.clip:
            nn.utils.clip_grad_norm_(model.parameters(), case.clip)
        optimizer.step()

    return step, wrapped, optimizer


def fsdp2(case, model, optimizer):
    half = case.precision == "bfloat16"
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    world = distributed.get_world_size()
    sizes = {"replicate": 2, "shard": world // 2} if case.strategy == "hsdp" else {"shard": world}
    mesh = init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    children = (child for child in model.children() if isinstance(child, (nn.Conv2d, nn.Linear)))
    for module in (*list(children)[:3:2], model):
        fully_shard(module, mp_policy=policy, mesh=mesh)
    if case.method == "SGD":
        optimizer = make(case, model)
    bind(optimizer, model)

    def step(parts, seldom):
        optimizer.zero_grad()
        for number, part in enumerate(parts):
            model.set_requires_gradient_sync(number == len(parts) - 1)
            (squared_loss(in_precision(case, model, seldom), part) / len(parts)).backward()
        if case.clip:
            nn.utils.clip_grad_norm_(model.parameters(), case.clip)
        optimizer.step()

    return step, model, optimizer


def config_of(case):
    return {
        "train_micro_batch_size_per_gpu": BATCH // case.accumulation // distributed.get_world_size(),
        "gradient_accumulation_steps": case.accumulation,
        "gradient_clipping": case.clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": int(case.strategy[-1]), "reduce_bucket_size": 1000, **case.zero},
        **ENGINES.get(case.precision, {}),
        **case.config,
    }


def zero(case, model, optimizer):
    import deepspeed

    deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True  # slowly, by any processor
    engine, outer, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config_of(case))
    bind(optimizer, engine)
    bind(optimizer, engine)  # a second time changes nothing

    def step(parts, seldom):
        for part in parts:
            engine.backward(squared_loss(in_precision(case, engine, seldom), part))
            engine.step()

    return step, engine, outer


def work(rank, world, folder, function, cases):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_SIZE": str(world)}
    batchnorm.sync_batch_norm = OnProcessors
    os.environ |= {"DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    for number, case in enumerate(cases):
        try:
            result = function(case, rank, world)
        except Exception:
            torch.save(traceback.format_exc(), f"{folder}/error{rank}.pt")
            raise
        torch.save(result, f"{folder}/{number}-{rank}.pt")
    distributed.barrier()
    os._exit(0)  # gloo's threads may abort an interpreter that is about to end


def launch(world: int, folder, function, cases, timeout: float = TIMEOUT) -> list[list]:
    """Run function(case, rank, world) for each case in `world` processes; return the results by case and rank."""
    multiprocessing.get_context(FORKS).set_forkserver_preload(PRELOADED)
    arguments = (world, str(folder), function, list(cases))
    context = multiprocessing.start_processes(work, arguments, world, join=False, start_method=FORKS)
    deadline = time.monotonic() + timeout
    try:
        while not context.join(1.0):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{timeout} seconds were not enough for {len(cases)} cases on {world} processes")
    finally:
        for process in context.processes:
            process.kill()
    return [
        [torch.load(f"{folder}/{number}-{rank}.pt", weights_only=False) for rank in range(world)]
        for number in range(len(cases))
    ]
