"""The tests that need a GPU, by pytest; on a processor those of the same file that do not."""

import importlib.util
import sys

import pytest
from part import ROOT, Part

ERRORS = 3  # lines of a failure that are kept


class Recorder:
    """Notes each test as it ends, so that what was done is known when time is up."""

    def __init__(self, part: Part) -> None:
        self.part = part
        part.result |= {"passed": 0, "skipped": 0, "failed": {}, "sums": {}, "seconds": {}}

    def pytest_runtest_logreport(self, report) -> None:
        found = self.part.result
        if report.failed:
            found["failed"][report.nodeid] = _last(report.longreprtext)
        elif report.skipped:
            found["skipped"] += 1
        elif report.when == "call":
            found["passed"] += 1
            found["sums"] |= {name: value for name, value in report.user_properties if isinstance(value, list)}
            found["seconds"][report.nodeid] = round(report.duration, 2)
        if report.when == "call" or report.failed:
            self.part.write()


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("E ")]
    return "\n".join(line.removeprefix("E").strip()[:300] for line in lines[:ERRORS])


def main() -> int:
    part = Part(__doc__)
    words = ["-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib", "-q", f"--rootdir={ROOT}"]
    words += ["-m", "gpu"] if part.on_gpu else ["-k", "cpu and convnext" if part.quick else "cpu"]
    if part.on_gpu and importlib.util.find_spec("xdist"):
        words += ["-n", "4"]
    files = ["tests/norms/test_cuda.py", "tests/norms/test_fused.py"][: 2 if part.on_gpu else 1]
    code = pytest.main([*words, *(str(ROOT / file) for file in files)], plugins=[Recorder(part)])
    part.result["done"] = True
    part.write()
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
