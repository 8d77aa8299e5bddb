"""`make gpu`: parts that fail, hang or are not there; its page; and all of its code, at toy sizes on the processor."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"

LEAVES = """
import json, pathlib, subprocess, sys
into = pathlib.Path(sys.argv[1])
into.write_text(json.dumps({"first": 1}))
print("so far")
"""
HANGS = (
    LEAVES
    + """
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
into.write_text(json.dumps({"child": child.pid}))
child.wait()
"""
)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


def test_a_part_that_ends_well(gpu, tmp_path):
    found = gpu.run([sys.executable, "-c", LEAVES, str(tmp_path / "a.json")], tmp_path / "a.json", 60)
    assert (found["exit"], found["problem"], found["result"]) == (0, None, {"first": 1})


def test_a_part_that_fails_keeps_what_it_found(gpu, tmp_path):
    script = LEAVES + "raise RuntimeError('the device is gone')"
    found = gpu.run([sys.executable, "-c", script, str(tmp_path / "a.json")], tmp_path / "a.json", 60)
    assert found["exit"] == 1 and found["result"] == {"first": 1}
    assert "so far" in found["problem"] and found["problem"].strip().endswith("RuntimeError: the device is gone")


def test_a_part_that_hangs_is_ended_with_all_it_has_started(gpu, tmp_path):
    found = gpu.run([sys.executable, "-c", HANGS, str(tmp_path / "a.json")], tmp_path / "a.json", 3)
    assert found["exit"] is None and "was ended after 3 s" in found["problem"]
    for _ in range(100):
        if _gone(found["result"]["child"]):
            return
        time.sleep(0.1)
    pytest.fail("the process that it had started is still there")


def _gone(pid):
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def test_a_part_that_cannot_begin_leaves_nothing(gpu, tmp_path):
    found = gpu.run([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "a.json", 60)
    assert found["exit"] == 3 and found["result"] is None


def test_eight_minutes(gpu):
    assert sum(gpu.LIMITS.values()) <= 480
    assert all((BENCHMARKS / "gpu_parts" / f"{part}.py").exists() for part in gpu.LIMITS)
    assert set(gpu.LIMITS) == set(gpu.markdown.__globals__["SECTIONS"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_written(gpu, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    assert gpu.main() == 2
    assert "no GPU" in capsys.readouterr().err and not list(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--quick"])
    assert gpu.main() == 2


def test_the_page_of_a_measurement(gpu, tmp_path):
    """What is there is told, what is not is not measured, and what went wrong is told where it went wrong."""
    row = {"ms": 50.0, "range": [49.0, 51.0], "host_ms": 20.0, "peak_bytes": 2 * 10**9, "first_s": 3.0}
    step = {
        "rounds": 5,
        "steps": 3,
        "sizes": {"resnet50": [256, 224], "convnext_tiny": [128, 224]},
        "networks": {
            "resnet50": {"sgd": row, "exact": row | {"ms": 60.0}, "group": {"problem": "OutOfMemoryError: a | b"}},
        },
        "graph": {"problem": "UserError: no"},
    }
    result = {"command": "python benchmarks/gpu.py", "device": "cuda", "quick": False, "parts": {}}
    assert gpu.markdown(result).count("Not measured.") == len(gpu.LIMITS)
    result["parts"]["step"] = {"seconds": 230.0, "exit": None, "problem": "It was ended.", "result": step}
    gpu.write(result, tmp_path)
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    unknown = "not measured"
    assert f"| resnet50, 256, 224 | 50.0 | {unknown} | 1.20 | OutOfMemoryError: a / b | {unknown} |" in page
    assert f"| convnext_tiny, 128, 224 | {' | '.join([unknown] * 5)} |" in page
    assert "| resnet50, 256, 224, in one CUDA graph | UserError: no |" in page
    assert "This part did not end well, after 230 s." in page
    assert "Toy sizes" not in page
    assert json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8")) == result
    assert (tmp_path / "gpu.png").stat().st_size > 1000


@pytest.mark.slow
def test_all_of_it_at_toy_sizes(tmp_path):
    line = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert not any(part["problem"] for part in parts.values())
    assert ["torch", True] in [row[:2] for row in parts["doctor"]["result"]["doctor"]]
    assert parts["checks"]["result"]["passed"] == 1 and parts["checks"]["result"]["sums"]
    recipe = parts["recipe"]["result"]
    assert all(recipe[kind]["exit"] == 0 and recipe[kind]["top1"] > 30 for kind in ("float32", "bf16"))
    assert recipe["fp16"] is None
    step = parts["step"]["result"]
    for network in step["networks"].values():
        assert all(row["ms"] > 0 and row["first_s"] > 0 and row["host_ms"] is None for row in network.values())
    assert step["compiled"]["exact"]["ms"] > 0 and len(step["profile"]["kernels"]["exact over sgd"]) > 5
    layers = parts["layers"]["result"]
    assert len(layers["convolutions"]) == 8 and all(row["methods"] for row in layers["convolutions"])
    assert all(times["with norms"] > 0 for times in layers["normalisations"].values())
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "Toy sizes" in page and (tmp_path / "gpu.png").exists()
