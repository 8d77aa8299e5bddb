"""Which networks clars tracks exactly: timm's, torchvision's and the image classifiers of transformers.

    python benchmarks/coverage.py

The smallest network of each family of timm, every classifier of torchvision, every class of transformers that tells
classes of pictures, in a small configuration. Each is made for the smallest pictures that it takes, in float64, with
nothing left to chance and no parameter at zero. Its sums of per-example norms must be those of the definition, for
every layer: with BatchNorm by its running statistics against one backward pass per example, and by those of the batch
against masked output gradients, where these can tell.

Each network has a process of its own with a limit. What has been checked is kept in coverage.json beside this file
and not checked again, but with --again. Writes docs/coverage.md, too; both to the folder given by --out, if it is.
"""

import argparse
import fnmatch
import json
import sys
from importlib.metadata import version
from pathlib import Path

from coverage_parts import report
from coverage_parts.networks import MAKERS, chosen, tried
from coverage_parts.processes import each_by_itself
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from clars.lab.files import write_json, write_text
from clars.lab.runs.provenance import versions

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", action="append", choices=list(MAKERS), dest="sets", help="all by default")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of the networks' names, as timm/resnet*")
    parser.add_argument("--again", action="store_true", help="check also what has been checked")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=180, help="of processor time for one network")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = (options.out or HERE) / "coverage.json"
    page = (options.out or HERE.parent / "docs") / "coverage.md"
    kept = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    packages = {name: version(name) for name in ("torchvision", "transformers")}
    result = {"versions": versions() | packages, "timm_parameters": kept.get("timm_parameters", {})}
    result["networks"] = kept.get("networks", {})
    keys = fnmatch.filter(chosen(options.sets or MAKERS, result["timm_parameters"]), options.only)
    missing = keys if options.again else [key for key in keys if key not in result["networks"]]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, transient=True) as progress:
            task = progress.add_task("networks", total=len(missing))
            for key, found in each_by_itself(tried, missing, options.workers, options.seconds):
                result["networks"][key] = found
                write_json(results, result)
                progress.update(task, advance=1, description=f"{key}: {found['status']}"[:60])
    except KeyboardInterrupt:
        print("Interrupted; what was checked is kept.", file=sys.stderr)
    write_json(results, result)
    write_text(page, report.markdown(result))
    print(report.summary(result))


if __name__ == "__main__":
    main()
