"""A disk that is full in the middle of a run: files that cannot grow beyond a limit, which needs no disk to fill."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from machine import TRAIN, record

from clars.lab.training import script

LIMITED = """\
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("limit, file", [(200, "metrics.jsonl"), (2000, "resume.safetensors")])
def test_one_message_and_nothing_half_written(recipe, limit, file):
    path = recipe(epochs=1)
    command = [sys.executable, "-c", LIMITED, str(limit), str(TRAIN), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 2
    (line,) = (text for text in done.stderr.splitlines() if text.startswith("error: "))
    assert "File too large" in line and "Traceback" not in done.stderr
    left = {found.name for found in Path("runs/tiny/small/seed0").iterdir()}
    assert left <= {"metrics.jsonl", "metrics.csv"}  # neither a record nor a part of a state
    assert file == "metrics.jsonl" or left
    assert script.main([str(path)]) == 0
    assert record("runs/tiny")["status"] == "finished"
