"""The page and the figure of gpu.py, from what its parts have left by then."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from matplotlib import pyplot as plt

from clars.lab.files import replacing

LABELS = {
    "sgd": "SGD",
    "lars": "LARS",
    "exact": "CLARS",
    "group": "CLARS, groups of 8",
    "subset": "CLARS, 1/8 of the batch",
}
UNKNOWN = "not measured"


def markdown(result: dict) -> str:
    """Return the page; what is not known is "not measured"."""
    lines = ["# On a GPU", "", f"Regenerate with `{result['command']}`.", ""]
    if result["device"] != "cuda" or result["quick"]:
        lines += ["**Toy sizes, to try the code out: these numbers say nothing about a GPU.**", ""]
    for name, (title, section) in SECTIONS.items():
        part = result["parts"].get(name)
        lines += [f"## {title}", ""]
        found = part["result"] if part else None
        lines += section(found) if found else [UNKNOWN[0].upper() + UNKNOWN[1:] + ".", ""]
        if part and part["problem"]:
            lines += [f"This part did not end well, after {part['seconds']:g} s.", "", "```", part["problem"].strip()]
            lines += ["```", ""]
    return "\n".join(lines)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a table, and an empty one."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return [*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows), ""]


def number(value: float | None, form: str = ".2f", factor: float = 1.0) -> str:
    return UNKNOWN if value is None else format(value * factor, form)


def told(found: dict | None) -> str | None:
    """Return what went wrong with something, in a line; None where nothing did."""
    return found["problem"].replace("\n", " ").replace("|", "/") if found and found.get("problem") else None


def _machine(found: dict) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    driver = ", ".join(f"{name} {value}" for name, value in found["driver"].items()) or f"driver {UNKNOWN}"
    lines = [f"{found['device']}; {driver}; CUDA {found['cuda']}, cuDNN {found['cudnn']}, triton {found['triton']}; "]
    lines = [lines[0] + f"{found['cores']} cores; {versions}.", ""]
    doctor = found.get("doctor")
    if isinstance(doctor, list):
        lines += table(("clars doctor", "", ""), [(name, "yes" if ok else "no", text) for name, ok, text in doctor])
    return lines


def _checks(found: dict) -> list[str]:
    ended = "" if found.get("done") else " Time was up before the last."
    failed = found["failed"]
    lines = [f"{found['passed']} passed, {len(failed)} failed, {found['skipped']} were skipped.{ended}", ""]
    if failed:
        lines += table(
            ("failed", "why"), [(name, why.replace("\n", " ").replace("|", "/")) for name, why in failed.items()]
        )
    head = ("sums", "layer with the largest error", "error of its sum", "of its gradient")
    rows = [(name, layer, f"{one:.1e}", f"{other:.1e}") for name, (layer, one, other) in sorted(found["sums"].items())]
    return lines + (table(head, rows) if rows else [])


def _recipe(found: dict) -> list[str]:
    rows = []
    for kind, run in found.items():
        if run is None:
            rows.append((kind, UNKNOWN, UNKNOWN, UNKNOWN))
        else:
            top1 = told(run) or number(run.get("top1"), ".2f")
            rows.append((kind, run["exit"], top1, number(run["seconds"], ".0f")))
    return table(("quickstart/clars-512", "exit code", "top-1, %", "seconds, imports included"), rows)


def _steps(found: dict) -> list[str]:
    head = ("network, batch, pixels", *LABELS.values())
    lines = [
        f"Milliseconds of a step with SGD, and of the other methods over it: medians of {found['rounds']} rounds of "
        f"{found['steps']} steps; bfloat16 by autocast, channels together in memory, cudnn.benchmark.",
        "",
    ]
    names = {network: f"{network}, {', '.join(map(str, size))}" for network, size in found["sizes"].items()}
    networks = found["networks"]
    lines += table(head, [(names[name], *_ratios(networks.get(name))) for name in names])
    views: dict[str, Callable[[dict], str]] = {
        "Milliseconds until the last launch of a step has returned on the host": lambda row: number(
            row.get("host_ms"), ".1f"
        ),
        "Peak memory of a step beyond what lies there before it, GB": lambda row: number(
            row.get("peak_bytes"), ".2f", 1e-9
        ),
        "Seconds of the first step": lambda row: number(row.get("first_s"), ".1f"),
    }
    for title, view in views.items():
        rows = [(names[name], *(view(_row(networks.get(name), method)) for method in LABELS)) for name in names]
        lines += [f"{title}:", "", *table(head, rows)]
    first = next(iter(names.values()), "")
    for key, title in (("graph", "in one CUDA graph"), ("compiled", "by torch.compile")):
        rows = [(f"{first}, {title}", *_ratios(found.get(key)))]
        rows += [("its host, ms", *(number(_row(found.get(key), m).get("host_ms"), ".2f") for m in LABELS))]
        rows += [("its first steps, s", *(number(_row(found.get(key), m).get("first_s"), ".1f") for m in LABELS))]
        lines += table(head, rows)
    return lines + _profile(found.get("profile"), first)


def _row(network: dict | None, method: str) -> dict:
    return (network or {}).get(method) or {} if not told(network) else {}


def _ratios(network: dict | None) -> list[str]:
    """Return the cells of a network: SGD's milliseconds, and the others' time over it."""
    if told(network):
        return [told(network), *[UNKNOWN] * (len(LABELS) - 1)]
    base, cells = _row(network, "sgd").get("ms"), []
    for method in LABELS:
        row = _row(network, method)
        value = row.get("ms")
        if problem := told(row):
            cells.append(problem)
        elif method == "sgd":
            cells.append(number(value, ".1f"))
        else:
            cells.append(number(value / base if value and base else None))
    return cells


def _profile(found: dict | None, network: str) -> list[str]:
    if not found or told(found):
        return [f"Profile of {network}: {told(found) or UNKNOWN}.", ""]
    lines = []
    for title, rows in found["kernels"].items():
        label = " over ".join(LABELS[name] for name in title.split(" over "))
        lines += [f"{network}, {label}: {found['ms'][title]:.1f} ms on the device in a step, most of it by:", ""]
        lines += table(("kernel", "ms", "calls"), [(name.replace("|", "/"), f"{ms:.2f}", n) for name, ms, n in rows])
    return lines


def _layers(found: dict) -> list[str]:
    methods = list(dict.fromkeys(name for row in found["convolutions"] for name in row["methods"]))
    head = ("weight gradient of", "gy", "weight", "stride", "library, ms", *methods)
    rows = []
    for row in found["convolutions"]:
        shapes = ("x".join(map(str, row[key])) for key in ("gy", "weight", "stride"))
        times = (number(row["methods"].get(name), ".3f", 1e3) if name in row["methods"] else "-" for name in methods)
        rows.append((row["layer"], *shapes, number(row["own"], ".3f", 1e3), *times))
    problem = told(found.get("problem of the convolutions"))
    lines = ["Milliseconds; of the methods, with all examples' norms.", "", *table(head, rows)]
    lines += [problem, ""] if problem else []
    rows = []
    for name, times in found["normalisations"].items():
        times = {} if told(times) else times
        rows.append((name, *(number(times.get(key), ".3f", 1e3) for key in ("plain", "with norms"))))
    return lines + table(("backward pass of", "torch's own, ms", "with norms, ms"), rows)


SECTIONS: dict[str, tuple[str, Callable[[dict], list[str]]]] = {
    "doctor": ("The machine", _machine),
    "checks": ("Tests", _checks),
    "recipe": ("A recipe", _recipe),
    "step": ("Time of a step", _steps),
    "layers": ("Layers by themselves", _layers),
}


def chart(result: dict, path: Path) -> None:
    """Draw the methods' time over SGD's, a group of bars for each network; nothing where no network is known yet."""
    part = result["parts"].get("step") or {}
    networks = {name: row for name, row in ((part.get("result") or {}).get("networks") or {}).items() if not told(row)}
    networks = {name: row for name, row in networks.items() if _row(row, "sgd").get("ms")}
    if not networks:
        return
    others = [method for method in LABELS if method != "sgd"]
    figure, axes = plt.subplots(figsize=(8, 1 + 0.9 * len(networks)), layout="constrained")
    height = 0.8 / len(others)
    for place, method in enumerate(others):
        known = {
            index: row[method]["ms"] / row["sgd"]["ms"]
            for index, row in enumerate(networks.values())
            if _row(row, method).get("ms")
        }
        bars = axes.barh(
            [index + place * height for index in known], list(known.values()), height, label=LABELS[method]
        )
        axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_yticks([index + height * (len(others) - 1) / 2 for index in range(len(networks))], list(networks))
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.margins(x=0.1)
    axes.set_xlabel("time of a training step over one with SGD")
    figure.legend(loc="outside upper center", ncols=len(others))
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)
