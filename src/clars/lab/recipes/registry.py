"""Where recipes lie: `recipes/<folder>/v<N>/<name>.yaml`, called `folder/name@vN`."""

import os
import re
from pathlib import Path

from clars.errors import RecipeError, nearest
from clars.lab import shipped
from clars.lab.recipes.reading import steering

TABLE = "table"
UNVERSIONED = "unversioned"
_LAYOUT = "*/v*/*.yaml"


def root() -> Path:
    """Return $CLARS_RECIPES, else the recipes folder at or above the current directory, else the package's own.

    Raises:
        RecipeError: $CLARS_RECIPES holds no recipes, or the package came without.
    """
    if chosen := os.environ.get("CLARS_RECIPES"):
        if not any(Path(chosen).glob(_LAYOUT)):
            raise RecipeError(f"CLARS_RECIPES={chosen!r} holds no folder/v1/name.yaml; set it to a recipes folder.")
        return Path(chosen).resolve()
    here = Path.cwd()
    for place in (*(folder / "recipes" for folder in (here, *here.parents)), shipped.folder("recipes")):
        if any(place.glob(_LAYOUT)):
            return place
    raise RecipeError(
        f"no recipes at or above {here}, nor in the package: clone the repository and work inside it, or set"
        " CLARS_RECIPES to its recipes folder."
    )


def script() -> Path:
    """Return the training script among the recipes, else the package's own."""
    own = root() / "train.py"
    return own if own.exists() else shipped.folder("recipes") / "train.py"


def launch_configs() -> Path:
    """Return the folder of accelerate's configurations beside the recipes, else the package's own."""
    own = root().parent / "configs" / "accelerate"
    return own if own.is_dir() else shipped.folder("configs") / "accelerate"


def copy(name: str, to: Path | None = None) -> Path:
    """Copy a recipe to a new file, by default NAME.yaml in the current directory, and return that file.

    Raises:
        RecipeError: there is no such recipe, or the file is there already.
    """
    if name in folders():
        raise RecipeError(f"{name} is a table of several recipes. Copy one of them: {', '.join(_of_folder(name))}.")
    bare, _, path = find(name)
    to = to or Path(f"{bare.rpartition('/')[2]}.yaml")
    if to.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"--to {to}: recipes are .yaml files.")
    try:
        with to.open("xb") as file:
            file.write(path.read_bytes())
    except FileExistsError:
        raise RecipeError(f"{to} is there already. Choose another name: --to FILE.yaml.") from None
    return to


def _of_folder(folder: str) -> list[str]:
    return [name for name in names() if name.startswith(f"{folder}/")]


def number(version: str) -> int:
    """Return N of `vN`, so that v10 sorts after v9."""
    return int(version[1:])


def versions(name: str) -> dict[str, Path]:
    """Return the files of `folder/name` by version, oldest first; empty where there are none."""
    folder, _, stem = name.partition("/")
    return {version: files[stem] for version, files in _contents(folder).items() if stem in files}


def names() -> list[str]:
    """Return every recipe as `folder/name`, in alphabetical order, but for names that a terminal would obey."""
    folders = {path.parents[1].name for path in root().glob(_LAYOUT)}
    found = {f"{folder}/{stem}" for folder in folders for files in _contents(folder).values() for stem in files}
    return sorted(name for name in found if not name.endswith(f"/{TABLE}") and name.isprintable())


def folders() -> list[str]:
    """Return the folders that have a table, in alphabetical order."""
    found = {path.parents[1].name for path in root().glob(f"*/v*/{TABLE}.yaml")}
    return sorted(name for name in found if name.isprintable())


def find(name: str) -> tuple[str, str, Path]:
    """Resolve `folder/name`, `folder/name@vN` or the path of a .yaml file.

    Returns:
        The name without version, the version (the newest where none is asked for; `unversioned` for a file
        outside the layout), and the file.

    Raises:
        RecipeError: there is no such recipe, version or file; the message names near ones.
    """
    if name.endswith((".yaml", ".yml")):
        return _find_file(Path(name))
    bare, _, version = name.partition("@")
    known = versions(bare) if bare in names() else {}
    if not known:
        raise RecipeError(f"{name!r} is no recipe in {root()}.{_near(bare)} `clars recipes` lists them.")
    return bare, *_pick(bare, known, version)


def holds(path: Path) -> bool:
    """Tell whether a file is a recipe of the root, which has a name; any other is found by its path alone."""
    path = path.resolve()
    try:
        return re.fullmatch(r"v\d+", path.parent.name) is not None and path.parents[2] == root().resolve()
    except RecipeError:
        return False


def find_table(folder: str, version: str | None = None) -> tuple[str, Path]:
    """Return the version, by default the newest, and the file of a folder's table.

    Raises:
        RecipeError: there is no such table or version; the message names near ones.
    """
    known = versions(f"{folder}/{TABLE}") if folder in folders() else {}
    if not known:
        near, listed = nearest(folder, folders()), ", ".join(folders()) or "none"
        raise RecipeError(f"{folder!r} is no recipe folder with a table in {root()}.{near} There are: {listed}.")
    return _pick(folder, known, version)


def _pick(name: str, known: dict[str, Path], version: str | None) -> tuple[str, Path]:
    version = version or list(known)[-1]
    if version not in known:
        raise RecipeError(f"{name} has no version {version!r}; it has {', '.join(known)}.")
    return version, known[version]


def _near(name: str) -> str:
    stem = name.rpartition("/")[2]
    by_stem = [known for known in names() if known.rpartition("/")[2] == stem]
    return nearest(name, names()) or (f" Did you mean {' or '.join(map(repr, by_stem))}?" if by_stem else "")


def _find_file(path: Path) -> tuple[str, str, Path]:
    if not path.is_file():
        raise RecipeError(f"{str(path)!r} is not a file. Give a .yaml file, or a name that `clars recipes` lists.")
    if sign := steering(str(path), ""):
        raise RecipeError(f"{str(path)!r}: the name holds {sign}, which belongs in no text. Rename it.")
    version = path.resolve().parent.name
    if not re.fullmatch(r"v\d+", version):
        return path.stem, UNVERSIONED, path
    return f"{path.resolve().parents[1].name}/{path.stem}", version, path


def _contents(folder: str) -> dict[str, dict[str, Path]]:
    """Return the files of a folder, by version (oldest first) and stem."""
    found = [path for path in (root() / folder).glob("v*") if re.fullmatch(r"v\d+", path.name)]
    return {
        path.name: {file.stem: file for file in sorted(path.glob("*.yaml"))}
        for path in sorted(found, key=lambda path: number(path.name))
    }
