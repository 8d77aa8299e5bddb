"""YAML that every reader takes for what was written."""

import re

import yaml

from clars.lab.recipes.reading import PLAIN


class _Dumper(yaml.SafeDumper):
    """PyYAML's, which knows YAML 1.1 only: it would leave a text such as `5e-4` without quotes."""


for _tag, _form in PLAIN.items():
    _Dumper.add_implicit_resolver(_tag, re.compile(f"(?:{_form})$"), None)


def dump(settings: dict) -> str:
    """Return YAML, in the order of `settings`, that `reading.parse` and other readers turn back into the same."""
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False)
