"""Test files that run as scripts as well, for what takes a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path


def run(script, *words, paths=(), **environment):
    """Return what a test file prints, run as a script that finds the modules of tests, and of other `paths`."""
    found = os.pathsep.join(map(str, (*paths, Path(__file__).parent, os.environ.get("PYTHONPATH", ""))))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": found} | environment
    done = subprocess.run([sys.executable, script, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def interpreted(script):
    """Return what a test file prints as JSON where kernels run in triton's interpreter.

    The interpreter has to be asked for before triton is first imported: in a process of its own, one for all cases.
    """
    return json.loads(run(script, TRITON_INTERPRET="1"))
