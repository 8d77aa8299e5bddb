"""Train one or more recipes:

accelerate launch --config_file configs/accelerate/cpu.yaml recipes/train.py quickstart/clars-512 --seed 0
"""

import sys

from clars import exits
from clars.training.script import main

if __name__ == "__main__":
    sys.exit(exits.report(main()))
