"""Public names and their signatures are those that are pinned in api.txt: nobody's loop breaks unnoticed.

`python tests/test_api.py` writes the file anew where a change is meant; it belongs into CHANGELOG.md.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path

import clars

PINNED = Path(__file__).with_name("api.txt")


# What a user calls of the classes; what else has no underscore is for other rooms of the house.
METHODS = {
    "CLARS": ("author2019", "layer_stats", "zero_grad", "step", "state_dict", "load_state_dict"),
    "LARS": ("layer_stats", "zero_grad", "step", "state_dict", "load_state_dict"),
    "LAMB": ("layer_stats", "zero_grad", "step", "state_dict", "load_state_dict"),
    "ExampleNorms": ("sums", "squares", "reset", "scale", "remove", "slow_layers", "examples"),
    "NoiseScale": ("update", "batch_size", "layers", "remove", "state_dict", "load_state_dict"),
    "LayerStats": clars.LayerStats._fields,
    "oracle": ("example_norms", "mask_norms", "vmap_norms"),
}


def lines() -> Iterator[str]:
    """Yield a line for each public name, with its signature, and for what a user calls of it."""
    for name in sorted(clars.__all__):
        thing = getattr(clars, name)
        yield f"clars.{name}{_signature(thing)}"
        for attribute in METHODS.get(name, ()):
            yield f"clars.{name}.{attribute}{_signature(getattr(thing, attribute))}"


def _signature(thing: object) -> str:
    try:
        return str(inspect.signature(thing)) if callable(thing) else ""
    except ValueError:
        return "(...)"


def test_public_names_and_signatures_are_the_pinned_ones():
    assert list(lines()) == PINNED.read_text().splitlines()


if __name__ == "__main__":
    PINNED.write_text("".join(f"{line}\n" for line in lines()))
