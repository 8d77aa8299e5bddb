"""What peers.py writes: tables and a bar chart."""

import textwrap
from pathlib import Path

import matplotlib
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from peer_tools import (
    BATCH_NORM_BATCH,
    BATCH_NORM_MODELS,
    BATCH_NORM_PIXELS,
    CLASSES,
    ERROR_BATCH,
    ERROR_PIXELS,
    PEERS,
)
from step_time import LABEL

from clars.lab.files import replacing
from clars.lab.tables.figures.style import PALETTE, STYLE

RIGHT = 1e-9  # largest error in float64 that rounding explains
OURS, OTHERS = PALETTE[0], "#777777"


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def error_text(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.0e}" if value else "0"


def threads_text(result: dict) -> str:
    numbers = [row["threads"] for row in result["time"]]
    return counted(numbers[0], "thread") if len(numbers) == 1 else f"{' and '.join(map(str, numbers))} threads"


def time_table(result: dict) -> str:
    timed = [row["peers"] for row in result["time"]]
    columns = [text for row in result["time"] for text in (f"{counted(row['threads'], 'thread')}, s", "over SGD")]
    rows = [
        f"| tool | {' | '.join(columns)} | error, float64 | off from exact CLARS, float32 |",
        f"|---|{'---:|' * (len(columns) + 2)}",
    ]
    for name, peer in PEERS.items():
        cells = [f"{peers[name]['median']:.2f} | {peers[name]['over_sgd']:.2f}" for peers in timed]
        if peer.norms:
            cells += [error_text(result["error"][name]), error_text(timed[0][name]["off_from_clars"])]
        else:
            cells += ["no norms"] * 2
        rows.append(f"| {peer.label} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def batch_norm_table(result: dict) -> str:
    rows = [f"| tool | {' | '.join(BATCH_NORM_MODELS)} |", "|---|" + "---|" * len(BATCH_NORM_MODELS)]
    for label, answers in result["batch_norm"].items():
        cells = [answer_text(answers[name]).replace("|", " ") for name in BATCH_NORM_MODELS]
        rows.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def answer_text(found: dict) -> str:
    if "exception" in found:
        return f"{found['exception']}: {textwrap.shorten(found['message'], 165, placeholder=' ...')}"
    right = found["error"] is not None and found["error"] <= RIGHT
    return f"{'works' if right else 'answers'}, error {error_text(found['error'])}"


def markdown(result: dict) -> str:
    """Return the tables of a result as Markdown."""
    made = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    notes = "".join(f"- {peer.label}: {peer.note}\n" for peer in PEERS.values())
    return (
        "# Per-example gradient norms, tool by tool\n\n"
        f"Measured on {result['device']}, {counted(result['cores'], 'core')}, with {threads_text(result)}. {made}.\n\n"
        f"Regenerate with `{result['command']}`, after `pip install -e '.[bench]'`.\n\n"
        "## What a training step costs\n\n"
        f"ResNet-18 with GroupNorm and nothing in place, {CLASSES} classes, batch {result['batch']} at "
        f"{result['pixels']} px. A step is forward, cross entropy, backward, the sum over the examples of each layer's "
        "gradient norms (weight and bias together), and the optimizer's step; the median of "
        f"{counted(result['rounds'], 'interleaved round')}. The errors are the largest of any layer. In float64 they "
        f"are against `clars.oracle.mask_norms`, on {ERROR_BATCH} images of {ERROR_PIXELS} px; in float32 "
        "against exact CLARS on the batch that is timed. There 1e-4 is what torch's float32 `norm` of a gradient of "
        "millions of numbers is off by, not a tool's rule.\n\n"
        f"{time_table(result)}\n"
        "![Time over SGD](peers.png)\n\n"
        f"{notes}\n"
        "## What they answer to BatchNorm\n\n"
        f"timm's networks as they come, in training mode, {BATCH_NORM_BATCH} images of {BATCH_NORM_PIXELS} px, "
        f"float64. `works`: the largest error of any layer against `clars.oracle.mask_norms` is at most {RIGHT:.0e}; "
        "`answers`: numbers, but further off. What an example's gradient means there is in docs/batchnorm.md.\n\n"
        f"{batch_norm_table(result)}"
    )


def figure(result: dict, path: Path) -> None:
    """Draw the time over SGD, a bar per tool and number of threads, the cheapest on top."""
    runs = result["time"]
    names = sorted((name for name in runs[0]["peers"] if name != "sgd"), key=lambda n: runs[0]["peers"][n]["over_sgd"])
    height = 0.8 / len(runs)
    with matplotlib.rc_context(STYLE), replacing(path) as temporary:
        canvas = Figure(figsize=(8, 1.5 + len(names) * (0.2 + 0.22 * len(runs))), layout="constrained")
        axes = canvas.add_subplot(title="What per-example gradient norms cost, tool by tool")
        for turn, row in enumerate(runs):
            ratios = [row["peers"][name]["over_sgd"] for name in names]
            places = [place + (turn - (len(runs) - 1) / 2) * height for place in range(len(names))]
            colours = [shade(OURS if name in ("clars", "subset") else OTHERS, turn) for name in names]
            bars = axes.barh(places, ratios, 0.92 * height, color=colours)
            axes.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=4, fontsize=9, bbox=LABEL)
        axes.axvline(1, color="#222222", linewidth=1.2, linestyle="--")
        labels = [PEERS[name].label + ("" if PEERS[name].norms else " (no norms)") for name in names]
        axes.set_yticks(range(len(names)), labels)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.1, y=0.02)
        axes.set_xlabel(
            f"time of a step over torch's SGD; ResNet-18 with GroupNorm, batch {result['batch']}, {result['pixels']} px"
        )
        patches = [
            Patch(color=shade(OTHERS, turn), label=counted(row["threads"], "thread")) for turn, row in enumerate(runs)
        ]
        axes.legend(handles=patches, loc="upper right")  # the long bars are below
        canvas.savefig(temporary, dpi=150)


def shade(colour: str, turn: int) -> tuple[float, ...]:
    """Return a colour that is lighter at every turn."""
    keep = 0.6**turn
    return tuple(keep * part + 1 - keep for part in to_rgb(colour))
