"""python docs/pages.py: lay the pages of the site together in build/pages, for mkdocs; `make docs` does both.

The pages are those of the repository, where they are read as well. A link to what is no page becomes text, as the
site holds no code. Two pages are made: the public names, from their docstrings, and the settings of a recipe, from the
schema.
"""

import json
import os
import re
import shutil
import subprocess
import types
from collections.abc import Iterator
from pathlib import Path

import clars
from clars.lab.recipes import schema

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "build" / "pages"
PINNED = ROOT / "tests" / "api.txt"  # the public names, which a test keeps
KINDS = ("*.md", "*.png", "*.svg")
PLACES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs", "recipes", "checkpoints", "benchmarks")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)]*)?\)")


def sources() -> list[Path]:
    """Return the pages and pictures that git knows, relative to the repository; results only where they are tables."""
    listed = subprocess.run(["git", "ls-files", "-z", *PLACES], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = map(Path, filter(None, listed.stdout.split("\0")))
    return [path for path in paths if any(path.match(kind) for kind in KINDS)]


def relinked(text: str, page: Path, known: set[Path]) -> str:
    """Return a page's text with links that lead within the site; the others become plain text."""

    def replace(match: re.Match) -> str:
        picture, label, target, anchor = match.groups()
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = Path(os.path.normpath(page.parent / target))
        path = next((each for each in (path, path / "README.md") if each in known), None)
        if path is None:
            return label
        lead = os.path.relpath(place(path), place(page).parent)
        return f"{picture}[{label}]({lead}{anchor or ''})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)  # code is left alone
    return "".join(part if part.startswith("```") else LINK.sub(replace, part) for part in parts)


def place(page: Path) -> Path:
    """Return where a page of the repository lies in the site."""
    return Path("index.md") if page == Path("README.md") else page


def api() -> str:
    """Return the page of public names, with what is pinned of each."""
    lines, pinned = ["# API", "", "What `import clars` gives."], PINNED.read_text(encoding="utf-8")
    for name in sorted(clars.__all__):
        thing = getattr(clars, name)
        whole = thing.__name__ if isinstance(thing, types.ModuleType) else f"{thing.__module__}.{thing.__name__}"
        members = re.findall(rf"^clars\.{name}\.(\w+)", pinned, flags=re.M)
        lines += ["", f"::: {whole}", "    options:", f"      members: {json.dumps(members)}"]
    return "\n".join(lines) + "\n"


def settings() -> str:
    """Return the page of all settings of a recipe: names, kinds, defaults, and what the schema says of them."""
    whole = schema.Recipe.model_json_schema()
    sections = {name: kind for name, each in whole["properties"].items() if (kind := _section(each, whole))}
    top = {name: each for name, each in whole["properties"].items() if name not in sections}
    lines = ["# Settings of a recipe", "", _text(whole), "", "`clars show RECIPE` prints those of a recipe."]
    lines += ["", *_table(top, whole)]
    for name, section in sections.items():
        lines += ["", f"## {name}", "", _text(section), "", *_table(section["properties"], section)]
    return "\n".join(lines) + "\n"


def _table(fields: dict[str, dict], section: dict) -> Iterator[str]:
    yield "| setting | values | default |"
    yield "|---|---|---|"
    for name, field in fields.items():
        default = "needed" if name in section.get("required", ()) else f"`{json.dumps(field.get('default'))}`"
        yield f"| `{name}` | {_kind(field)} | {default} |"


def _kind(field: dict) -> str:
    """Say in words what a JSON schema allows."""
    if "enum" in field or "const" in field:
        return ", ".join(f"`{json.dumps(value)}`" for value in field.get("enum", [field.get("const")]))
    if "anyOf" in field:
        return " or ".join(map(_kind, field["anyOf"]))
    inner = field.get("items", field.get("additionalProperties"))
    of = f" of {_kind(inner)}" if isinstance(inner, dict) and inner else ""
    limits = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    told = [f"{word} {field[key]:,}" for key, word in limits.items() if key in field]
    return f"{field.get('type', 'anything')}{of}" + (f" {', '.join(told)}" if told else "")


def _section(field: dict, whole: dict) -> dict | None:
    """Return the schema of a section, such as that of the optimizer; None where a field is a value."""
    for each in (field, *field.get("allOf", ()), *field.get("anyOf", ())):
        if "$ref" in each:
            return whole["$defs"][each["$ref"].rpartition("/")[2]]
    return None


def _text(model: dict) -> str:
    return "\n".join(line.strip() for line in model.get("description", "").splitlines()).strip()


def main() -> None:
    """Write all pages anew."""
    shutil.rmtree(TARGET, ignore_errors=True)
    found = sources()
    for path in found:
        target = TARGET / place(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            target.write_text(relinked((ROOT / path).read_text(encoding="utf-8"), path, set(found)), encoding="utf-8")
        else:
            shutil.copyfile(ROOT / path, target)
    for name, text in (("api.md", api()), ("settings.md", settings())):
        (TARGET / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
