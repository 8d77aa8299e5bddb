"""The page of what was checked."""

import re
import textwrap
from collections import Counter

from .check import BATCH, BOUND

COMMAND = "python benchmarks/coverage.py"
OF = {
    "timm": "timm: the smallest network of each family",
    "torchvision": "torchvision: every network that tells classes",
    "transformers": "transformers: every class that tells classes of pictures, in a small configuration",
}
STATUSES = ("covered", "refused", "wrong", "fails", "time", "does not build")
MEANING = f"""
Covered is a network for which S_k of every layer, and the gradient beside it, is that of the definition within
{BOUND:g}, relative, in float64. A batch is {BATCH} random pictures of the smallest size that the network takes; nothing
is left to chance, and no parameter is at zero. With BatchNorm by its running statistics the definition is one backward
pass per example (`clars.oracle.example_norms`). With batch statistics it is the masked output gradient
(`clars.oracle.mask_norms`), for the layers of which that can tell. Layers whose gradient is exactly zero are left out:
their sums are zero with it. Of the largest networks, blocks that are like the two before them are left out.

Refused: `clars` names the layers and what they do. Wrong: it answers, further off. Fails: it breaks. Time: not done
within the limit. What does not build here says nothing about `clars`, and does not count.
"""


def markdown(result: dict) -> str:
    """Return the page."""
    sets = {kind: _of(result, kind) for kind in OF}
    rows = [
        "# Which networks are tracked exactly",
        "",
        f"Written by `{COMMAND}`; versions: {_versions(result)}.",
        "",
        *_wrapped(MEANING),
        "",
        "| set | networks | " + " | ".join(STATUSES) + " | covered of those that build |",
        "|---|" + "---:|" * (len(STATUSES) + 2),
        *(_line(OF[kind], networks) for kind, networks in sets.items() if networks),
    ]
    if exceptions := _exceptions(result["networks"]):
        rows += ["", "## Exceptions", "", "| network | what | why |", "|---|---|---|", *exceptions]
    for kind, networks in sets.items():
        if covered := {name: each for name, each in networks.items() if each["status"] == "covered"}:
            rows += ["", f"## Covered: {kind}", "", *_covered(covered)]
    return "\n".join(rows) + "\n"


def summary(result: dict) -> str:
    """Return the table of sets alone."""
    return "\n".join(_line(kind, networks) for kind in OF if (networks := _of(result, kind)))


def _of(result: dict, kind: str) -> dict[str, dict]:
    found = {key.partition("/")[2]: each for key, each in result["networks"].items() if key.startswith(f"{kind}/")}
    return dict(sorted(found.items()))


def _versions(result: dict) -> str:
    return ", ".join(f"{name} {version}" for name, version in result["versions"].items())


def _wrapped(text: str) -> list[str]:
    paragraphs = [textwrap.fill(" ".join(each.split()), 120) for each in text.strip().split("\n\n")]
    return "\n\n".join(paragraphs).splitlines()


def _line(name: str, networks: dict[str, dict]) -> str:
    counts = Counter(each["status"] for each in networks.values())
    build = len(networks) - counts["does not build"]
    share = f"{100 * counts['covered'] / build:.1f} %" if build else ""
    return f"| {name} | {len(networks)} | " + " | ".join(str(counts[each]) for each in STATUSES) + f" | {share} |"


def _exceptions(networks: dict[str, dict]) -> list[str]:
    return [
        f"| {key} | {each['status']} | {_reason(each)} |"
        for key, each in sorted(networks.items())
        if each["status"] != "covered"
    ]


def _reason(found: dict) -> str:
    """Return why a network is not covered, what many layers do once, in a cell of a table."""
    part = found.get("of_batch", found.get("running", found))
    where = "with batch statistics: " if "of_batch" in found else ""
    alike: dict[str, list[str]] = {}
    for problem, layers in part.get("problems", {}).items():
        alike.setdefault(_without_particulars(problem), []).extend(layers)
    told = [f"{_some(layers)} {problem}" for problem, layers in alike.items()] or [part.get("message", "")]
    text = where + "; ".join(each.strip() for each in told)
    return textwrap.shorten(text.replace("|", "\\|"), 400, placeholder=" ...")


def _without_particulars(problem: str) -> str:
    """Return what layers do without the names of other layers, and without numbers."""
    return re.sub(r"\b\d+\b", "n", re.sub(r"'[\w.]+'", "'...'", problem)).rstrip(".")


def _some(layers: list[str]) -> str:
    if not layers:
        return ""
    return f"`{layers[0]}`" + (f" and {len(layers) - 1} more:" if len(layers) > 1 else ":")


def _covered(networks: dict[str, dict]) -> list[str]:
    """Return the table of networks; pixels, or what stands for a picture, and the largest error either way."""
    rows = [
        "| network | parameters, M | picture | layers | by the slow rule | error | with batch statistics | told |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for name, each in networks.items():
        shape = " x ".join(map(str, each["shape"]))
        note = f" ({each['left_out']} blocks left out)" if "left_out" in each else ""
        running, of_batch = each["running"], each.get("of_batch")
        second = f"{of_batch['error']:.0e} | {of_batch['told']}" if of_batch else " | "
        slow = len(running["slow_layers"]) or ""
        rows.append(
            f"| {name}{note} | {each['parameters'] / 1e6:.1f} | {shape} | {each['layers']} | {slow} | "
            f"{running['error']:.0e} | {second} |"
        )
    return rows
