"""YAML as recipes use it: small, of one meaning, and without what grows while it is read.

Plain scalars are those of the core schema of YAML 1.2; `5e-4` is a number. What YAML 1.1 reads as something else
(`010`, `1:30`, `1_000`, `no`, dates, `<<`) is refused, and so are repeated keys, tags, numbers beyond what Python's or
NumPy's hold, and characters that a terminal obeys.
"""

import hashlib
import math
import re
import unicodedata
from pathlib import Path

import yaml

from clars.errors import RecipeError

LARGEST = 2**16  # bytes; the longest table has a twentieth
DEEPEST = 20  # levels of sections and lists; a table has half as many
MOST_ALIASES = 20
QUOTED = 100  # characters of a value that a message repeats

_YAML = "tag:yaml.org,2002:"
PLAIN = {  # as in section 10.3.2 of YAML 1.2; all else is text
    f"{_YAML}null": r"~|null|Null|NULL|",
    f"{_YAML}bool": r"true|True|TRUE|false|False|FALSE",
    f"{_YAML}int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    f"{_YAML}float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
_REMEDIES = {
    f"{_YAML}bool": "write true or false, or quote it",
    f"{_YAML}int": "write the number in decimal digits, or quote it",
    f"{_YAML}float": "write the number in decimal digits, or quote it",
    f"{_YAML}merge": "write out the keys that it stands for",
}
_TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # the direction of writing


class _Refused(yaml.MarkedYAMLError):
    def __init__(self, place: yaml.Event | yaml.Node, problem: str) -> None:
        super().__init__(problem=problem, problem_mark=place.start_mark)


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, keeps the last of two equal keys, and follows aliases and brackets without end."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012  without those of YAML 1.1; filled below

    def __init__(self, source: str, aliases: bool) -> None:
        super().__init__(source)
        self.aliases = MOST_ALIASES if aliases else None
        self.depth = self.anchored = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        event = self.peek_event()
        self._require_plain(event)
        self.depth += 1
        self.anchored += event.anchor is not None
        if self.depth > DEEPEST:
            raise _Refused(event, f"more than {DEEPEST} sections or lists are nested here")
        node = super().compose_node(parent, index)
        self.depth -= 1
        self.anchored -= event.anchor is not None
        return node

    def compose_scalar_node(self, anchor: str | None) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if sign := steering(node.value, "\n\t"):
            raise _Refused(node, f"a text holds {sign}, which belongs in no text")
        if node.style is None and (remedy := _ambiguous(node)):
            raise _Refused(node, f"{quoted(node.value)} has one meaning in YAML 1.1 and another in 1.2; {remedy}")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        found = {}
        for name, value in node.value:
            key = self.construct_object(name, deep=True)
            if type(key) not in (str, int):  # True is 1 to a dict, and 1.0 is
                raise _Refused(name, f"the key {quoted(key)} is neither a text nor a whole number")
            if key in found:
                raise _Refused(name, f"the key {quoted(key)} stands twice")
            found[key] = self.construct_object(value, deep=deep)
        return found

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > QUOTED or not -(2**63) <= (value := int(node.value, 0)) < 2**63:
            raise _Refused(node, f"{quoted(node.value)} is no whole number of 64 bits")
        return value

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        text = node.value.lower()
        if text[-3:] in ("inf", "nan"):
            return super().construct_yaml_float(node)
        value = float(text)
        if math.isinf(value) or (value == 0 and re.search("[1-9]", text.partition("e")[0])):
            raise _Refused(node, f"{quoted(node.value)} would become {value}: it is beyond what a number holds")
        return value

    def _require_plain(self, event: yaml.Event) -> None:
        """Refuse tags and, but for tables, anchors and aliases; with none in another, these do not multiply."""
        if event.anchor is not None and self.aliases is None:
            raise _Refused(event, "anchors (&) and aliases (*) are not read here; write out what they stand for")
        if isinstance(event, yaml.AliasEvent):
            self.aliases -= 1
            if self.anchored or self.aliases < 0:
                raise _Refused(event, f"an alias within an anchor, or after {MOST_ALIASES} others; write it out")
        elif event.tag is not None:
            raise _Refused(event, f"the tag {quoted(event.tag)} is not read; leave it out")


for _tag, _form in PLAIN.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"(?:{_form})$"), None)
_Loader.add_constructor(f"{_YAML}int", _Loader.construct_yaml_int)
_Loader.add_constructor(f"{_YAML}float", _Loader.construct_yaml_float)


def parse(source: bytes | str, where: str, *, aliases: bool = False) -> object:
    """Return the value that `source` holds.

    Args:
        source: YAML, in UTF-8.
        where: what to call it in an error: the file, or the override.
        aliases: read `*name`, a few times, for what `&name` stands at.

    Raises:
        RecipeError: `source` is too large, not YAML, or of the kinds that are refused; the message names the line.
    """
    if len(source) > LARGEST:
        raise RecipeError(f"{where}: has more than {LARGEST} bytes, which no recipe and no table needs.")
    try:
        text = source if isinstance(source, str) else source.decode("utf-8-sig")
        if sign := steering(text, "\n\t\r"):
            raise ValueError(f"it holds {sign}, which belongs in no text")
        return _Loader(text, aliases).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{where}{line}: cannot be read as YAML: {error.problem or error.context}.") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise RecipeError(f"{where}: cannot be read as YAML: {' '.join(str(error).split())}.") from None


def read_file(path: Path, *, aliases: bool = False) -> tuple[dict, str]:
    """Return the mapping that a YAML file holds, perhaps with `aliases`, and the SHA-256 of its bytes."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}.") from None
    data = parse(content, str(path), aliases=aliases)
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: holds no keys and values; see another recipe for the form.")
    return data, hashlib.sha256(content).hexdigest()


def steering(text: str, allowed: str) -> str | None:
    """Return the name of the first character in `text` that a terminal would obey or refuse, but for those `allowed`.

    These are control characters, separators of lines and paragraphs, marks of the direction of writing, surrogates.
    """
    for sign in () if text.isprintable() else text:
        wrong = unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(sign) in _TURNING
        if wrong and sign not in allowed:
            return f"the character U+{ord(sign):04X}"
    return None


def quoted(value: object) -> str:
    """Return what a message says of a value: its beginning, where it is long."""
    text = repr(value)
    return text if len(text) <= QUOTED else f"{text[:QUOTED]}..."


def _ambiguous(node: yaml.ScalarNode) -> str | None:
    """Return what to write instead of a plain scalar that YAML 1.1 takes for something else than 1.2 does."""
    known = yaml.SafeLoader.yaml_implicit_resolvers.get(node.value[:1], ())
    old = next((tag for tag, form in known if form.match(node.value)), f"{_YAML}str")
    if node.tag == f"{_YAML}int" and re.match(r"[-+]?0[0-9]", node.value):
        old = node.tag  # 010 is 8 in YAML 1.1
    elif old in (node.tag, f"{_YAML}str"):  # the exponents and octal numbers that are new in 1.2 are no other number
        return None
    return _REMEDIES.get(old, "quote it")
