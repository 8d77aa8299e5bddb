"""YAML as recipes use it: repeated keys are errors and `5e-4` is a number."""

import re

import yaml

from clars.errors import RecipeError


class _Loader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; here they are an error."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else key
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {name!r} stands twice", problem_mark=key.start_mark)
            seen.add(name)
        return node


# YAML 1.1, which PyYAML reads, wants a dot and a sign in `5.0e-4`; without this `5e-4` would be text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse(source: bytes | str, where: str) -> object:
    """Return the value that `source` holds.

    Args:
        source: YAML.
        where: what to call it in an error: the file, or the override.

    Raises:
        RecipeError: `source` is not YAML; the message names the line.
    """
    try:
        return yaml.load(source, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{where}{line}: cannot be read as YAML: {error.problem or error.context}.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{where}: cannot be read as YAML: {' '.join(str(error).split())}.") from None
