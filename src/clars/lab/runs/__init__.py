"""What was run: the folder of a run, the files in it, and reading them back."""

from clars.lab.runs.find import read, read_folder, require_whole
from clars.lab.runs.layout import default_out, folder
from clars.lab.runs.record import Record, Run

__all__ = ["Record", "Run", "default_out", "folder", "read", "read_folder", "require_whole"]
