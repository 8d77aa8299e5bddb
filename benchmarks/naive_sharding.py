"""Error of a layer-wise optimizer that takes the norms of its own shard for those of the layer.

    python benchmarks/naive_sharding.py

Two processes take one step on the same global batch as one process does, with a LARS and a LAMB that know nothing of
sharding (timm's) and with this package's. The error of a tensor is the norm of the difference of its two changes over
the norm of the change in one process. Needs the extra [deepspeed]. Writes naive_sharding.json and naive_sharding.md
beside this file, or to the folder given by --out.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import timm
import timm.layers
import timm.optim
import torch
from step_time import machine
from torch import distributed, multiprocessing, nn
from torch.nn import functional as F

import clars
from clars.lab.files import write_json, write_text
from clars.sharding import gather_weights

HERE = Path(__file__).parent
MODEL, BATCH, PIXELS, WORLD = "resnet10t", 16, 32, 2
OPTIONS = {"lr": 0.5, "momentum": 0.9, "weight_decay": 5e-4, "trust_coeff": 1e-3, "always_adapt": True}
OWN = {"lr": 0.5, "momentum": 0.9, "weight_decay": 5e-4, "trust_coefficient": 1e-3}
LAMB = {"lr": 0.01, "weight_decay": 0.01}
NAIVE_LAMB = {**LAMB, "always_adapt": True, "max_grad_norm": None}


def each_alone(model: nn.Module) -> list[dict]:
    """Return a parameter group for each tensor."""
    return [{"params": [parameter]} for parameter in model.parameters()]


OPTIMIZERS = {
    "timm Lars, one group": lambda model: timm.optim.Lars(list(model.parameters()), **OPTIONS),
    "timm Lars, a group per tensor": lambda model: timm.optim.Lars(each_alone(model), **OPTIONS),
    "timm Lamb, one group": lambda model: timm.optim.Lamb(list(model.parameters()), **NAIVE_LAMB),
    "timm Lamb, a group per tensor": lambda model: timm.optim.Lamb(each_alone(model), **NAIVE_LAMB),
    "clars.LARS": lambda model: clars.LARS(model, **OWN),
    "clars.LAMB": lambda model: clars.LAMB(model, **LAMB),
    "clars.CLARS": lambda model: clars.CLARS(model, **OWN),
}


def setting() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return the same model and global batch in every process; no batch statistics, which processes do not share."""
    torch.manual_seed(0)
    model = timm.create_model(MODEL, num_classes=10, norm_layer=timm.layers.GroupNorm1, zero_init_last=False)
    return model, torch.randn(BATCH, 3, PIXELS, PIXELS), torch.randint(10, (BATCH,))


def alone(name: str) -> dict[str, torch.Tensor]:
    """Return each tensor's change by a step in one process."""
    model, x, y = setting()
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    optimizer = OPTIMIZERS[name](model)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    return {key: value.detach() - before[key] for key, value in model.named_parameters()}


def sharded(rank: int, folder: str) -> None:
    """Save each tensor's change by the same step under every stage of ZeRO."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=WORLD)
    import deepspeed

    for name, make in OPTIMIZERS.items():
        for stage in (1, 2, 3):
            model, x, y = setting()
            before = {key: value.detach().clone() for key, value in model.named_parameters()}
            config = {
                "train_micro_batch_size_per_gpu": BATCH // WORLD,
                "zero_optimization": {"stage": stage},
                "gradient_clipping": 0.0,
                "zero_allow_untested_optimizer": True,
            }
            optimizer = make(model)
            engine, outer, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
            if isinstance(optimizer, clars.LARS | clars.LAMB | clars.CLARS):
                clars.bind(optimizer, engine)
            engine.backward(F.cross_entropy(engine(x.chunk(WORLD)[rank]), y.chunk(WORLD)[rank]))
            engine.step()
            after = gather_weights(outer, engine)
            if rank == 0:
                changes = {key: after[key] - value for key, value in before.items()}
                torch.save(changes, f"{folder}/{name}-{stage}.pt")
    distributed.barrier()
    os._exit(0)  # gloo's threads may abort an interpreter that is about to end


def errors() -> list[dict]:
    """Return a row for each optimizer and stage: median and largest error of matrices and of vectors."""
    expected = {name: alone(name) for name in OPTIMIZERS}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(sharded, (folder,), nprocs=WORLD)
        for name, changes in expected.items():
            for stage in (1, 2, 3):
                got = torch.load(f"{folder}/{name}-{stage}.pt")
                error = {key: float((got[key] - value).norm() / value.norm()) for key, value in changes.items()}
                kinds = {
                    "matrices": [error[key] for key, value in changes.items() if value.dim() > 1],
                    "vectors": [error[key] for key, value in changes.items() if value.dim() == 1],
                }
                of = {kind: {"median": statistics.median(each), "largest": max(each)} for kind, each in kinds.items()}
                rows.append({"optimizer": name, "stage": stage, **of})
    return rows


def markdown(result: dict) -> str:
    """Return the table as Markdown."""
    lines = [
        f"Relative error of the change by one step of the tensors of {MODEL} with group normalisation, on {WORLD} "
        f"processes against one: median and largest. Measured on {result['device']}. Regenerate with "
        f"`{result['command']}`.",
        "",
        "| optimizer | ZeRO | weight matrices | largest | biases, scales | largest |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [f"{row[kind][of]:.2g}" for kind in ("matrices", "vectors") for of in ("median", "largest")]
        lines.append(f"| {row['optimizer']} | {row['stage']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    result = machine(torch.device("cpu"), "naive_sharding.py") | {"rows": errors()}
    write_json(options.out / "naive_sharding.json", result)
    write_text(options.out / "naive_sharding.md", markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
