from pathlib import Path

import pytest
from demo import SMALL, write

from clars.errors import RecipeError, UserError
from clars.lab import shipped
from clars.lab.recipes import registry


def test_names_are_sorted_and_leave_out_the_table(demo):
    assert registry.names() == ["demo/large", "demo/small"]
    assert registry.folders() == ["demo"]


def test_version_10_is_newer_than_version_9(demo):
    for version in ("v9", "v10"):
        folder = demo / "recipes" / "demo" / version
        folder.mkdir()
        (folder / "small.yaml").write_text(SMALL)
    assert registry.find("demo/small")[1] == "v10"
    assert registry.find("demo/small@v9")[2].parent.name == "v9"
    assert registry.find("demo/large")[1] == "v1"


def test_root_is_found_above_the_current_directory(demo, monkeypatch):
    (demo / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(demo / "a" / "b")
    assert registry.root() == demo / "recipes"


def test_a_folder_that_only_has_the_name_is_passed_over(demo, monkeypatch):
    (demo / "a" / "recipes" / "cakes").mkdir(parents=True)
    monkeypatch.chdir(demo / "a")
    assert registry.root() == demo / "recipes"


def test_the_environment_comes_first(demo, tmp_path, monkeypatch):
    other = write(tmp_path / "other", other=SMALL)
    monkeypatch.setenv("CLARS_RECIPES", str(other))
    assert registry.names() == ["demo/other"]


def test_an_environment_without_recipes_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("CLARS_RECIPES", str(tmp_path))
    with pytest.raises(RecipeError, match=r"CLARS_RECIPES=.*holds no folder/v1/name.yaml"):
        registry.root()


def test_no_recipes_anywhere_is_an_error(tmp_path, monkeypatch):
    monkeypatch.delenv("CLARS_RECIPES", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shipped, "CLONE", tmp_path / "clone")
    with pytest.raises(RecipeError, match="set CLARS_RECIPES"):
        registry.root()


@pytest.mark.parametrize(
    "name, message",
    [
        ("demo/smal", "Did you mean 'demo/small'"),
        ("small", "Did you mean 'demo/small'"),
        ("demo/table", "is no recipe"),
        ("demo/small/x", "is no recipe"),
        ("demo/small@v7", "demo/small has no version 'v7'; it has v1"),
        ("missing.yaml", "'missing.yaml' is not a file"),
    ],
)
def test_unknown_names_are_told_what_there_is(demo, name, message):
    with pytest.raises(RecipeError, match=message):
        registry.find(name)


def test_a_file_inside_the_layout_keeps_its_name(demo):
    name, version, path = registry.find("recipes/demo/v1/small.yaml")
    assert (name, version) == ("demo/small", "v1")
    assert path.is_file()


def test_a_file_elsewhere_is_unversioned(demo):
    (demo / "mine.yaml").write_text(SMALL)
    assert registry.find("mine.yaml")[:2] == ("mine", "unversioned")


def test_a_recipe_is_copied_to_a_new_file(demo):
    made = registry.copy("demo/small")
    assert made == Path("small.yaml") and made.read_bytes() == registry.find("demo/small")[2].read_bytes()
    with pytest.raises(RecipeError, match=r"small\.yaml is there already"):
        registry.copy("demo/large", made)
    assert made.read_bytes() == registry.find("demo/small")[2].read_bytes()
    with pytest.raises(RecipeError, match=r"demo is a table .* Copy one of them: demo/large, demo/small"):
        registry.copy("demo")
    with pytest.raises(RecipeError, match=r"--to other: recipes are \.yaml files"):
        registry.copy("demo/small", Path("other"))


def test_what_is_not_beside_the_recipes_is_the_package_s(demo):
    assert registry.script() == shipped.CLONE / "recipes" / "train.py"
    assert registry.launch_configs() == shipped.CLONE / "configs" / "accelerate"
    (demo / "recipes" / "train.py").touch()
    assert registry.script() == demo / "recipes" / "train.py"


def test_nothing_is_written_into_the_installed_package(demo, monkeypatch):
    shipped.require_own(demo / "recipes")
    monkeypatch.setattr(shipped, "WHEEL", demo)
    with pytest.raises(UserError, match="belongs to the installed package"):
        shipped.require_own(demo / "recipes")
