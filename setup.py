"""Puts the folders at the top that the lab reads into the wheel; everything else stands in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("recipes", "configs", "checkpoints")
# Records of published runs are evidence and stay in the repository; the rates of searches, which rows need, are kept.
LEFT_OUT = shutil.ignore_patterns("*.png", "seed*.json", "*.layers.json", "__pycache__")


class WithShipped(build_py):
    """Copies them to clars/lab/shipped, unless the installation is editable and they are read where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for name in SHIPPED:
                target = Path(self.build_lib, "clars", "lab", "shipped", name)
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(name, target, ignore=LEFT_OUT)


setup(cmdclass={"build_py": WithShipped})
