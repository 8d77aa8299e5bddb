"""Train one or more recipes:

accelerate launch --config_file configs/accelerate/cpu.yaml recipes/train.py quickstart/clars-512 --seed 0
"""

import sys

from clars.lab import imports
from clars.lab.launching import exits


def train() -> int:
    """Do what the command line asks; a signal to stop is heard from here on, while torch is imported too."""
    with imports.in_one_go():
        from clars.lab.training import script
    return script.main()


if __name__ == "__main__":
    sys.exit(exits.report(exits.guard(train)))
