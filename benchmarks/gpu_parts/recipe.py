"""One recipe by `accelerate launch` in every precision, and with its steps in a CUDA graph; all at the same time."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from part import ROOT, Part

RECIPE = "quickstart/clars-512"
KINDS = {
    "float32": ("no", ()),
    "bf16": ("bf16", ()),
    "fp16": ("fp16", ()),
    "bf16, CUDA graph": ("bf16", ("--cuda-graph",)),
}
ON_PROCESSORS = ("float32", "bf16")
ENOUGH = 4.0  # seconds to write down what those have said that do not end
LAST = 12  # lines of one that failed


def start(part: Part, kind: str, out: Path) -> subprocess.Popen:
    precision, options = KINDS[kind]
    config = ROOT / "configs" / "accelerate" / ("gpu.yaml" if part.on_gpu else "cpu.yaml")
    line = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet"]
    line += ["--config_file", str(config), "--mixed_precision", precision, str(ROOT / "recipes" / "train.py")]
    line += [RECIPE, f"epochs={1 if part.quick else 6}", *options, "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = (out / "log").open("w")
    return subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)


def ended(process: subprocess.Popen, out: Path, seconds: float) -> dict:
    found = {"exit": process.returncode, "seconds": round(seconds, 1)}
    records = list(out.glob("*/*/run.json"))
    if process.returncode == 0 and records:
        record = json.loads(records[0].read_text())
        return found | {"status": record["status"], "top1": record["final"]["top1"], "command": record["command"]}
    return found | {"problem": "\n".join((out / "log").read_text().splitlines()[-LAST:])}


def main() -> None:
    part = Part(__doc__)
    part.result = {kind: None for kind in KINDS}
    with TemporaryDirectory() as folder:
        outs = {kind: Path(folder, str(number)) for number, kind in enumerate(KINDS if part.on_gpu else ON_PROCESSORS)}
        for out in outs.values():
            out.mkdir()
        began = time.perf_counter()
        running = {kind: start(part, kind, out) for kind, out in outs.items()}
        while running:
            for kind, process in list(running.items()):
                if part.seconds_left < ENOUGH:
                    process.kill()
                    process.wait()
                if process.poll() is not None:
                    part.result[kind] = ended(running.pop(kind), outs[kind], time.perf_counter() - began)
                    part.write()
            time.sleep(0.1)


if __name__ == "__main__":
    main()
