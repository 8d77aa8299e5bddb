import pytest
from demo import LARGE, write, write_run

from clars.errors import UserError
from clars.lab.tables import frozen
from clars.lab.tables.definition import load_table
from clars.lab.tables.results import keep


@pytest.fixture
def published(demo):
    """The demo repository with a published run."""
    write_run(demo / "runs", "large", 0)
    table = load_table("demo")
    keep(table, demo / "runs", table.results)
    return demo


def test_publishing_freezes_every_file_of_the_version(published):
    assert frozen.changed(published / "recipes/demo/v1") == []
    (published / "recipes/demo/v1/small.yaml").unlink()
    write(published / "recipes", large=LARGE + "# changed\n")
    assert frozen.changed(published / "recipes/demo/v1") == ["large.yaml", "small.yaml"]


def test_a_changed_version_is_not_published_again(published):
    write(published / "recipes", large=LARGE + "# changed\n")
    table = load_table("demo")
    before = sorted(published.rglob("*"))
    with pytest.raises(UserError, match=r"v1: large\.yaml changed since results of v1 .* in a new version"):
        keep(table, published / "runs", table.results)
    assert sorted(published.rglob("*")) == before


def test_a_file_that_is_new_changes_nothing_that_was_published(published):
    write(published / "recipes", new=LARGE)
    frozen.check(load_table("demo"))


def test_published_runs_keep_their_search(published):
    with pytest.raises(UserError, match="holds runs, whose rates come from the search before them"):
        frozen.check_search(load_table("demo"))


@pytest.mark.parametrize(
    "content", ["", '{"large.yaml": "', "[]", "{}", '{"large.yaml": 1}', '{"large.yaml": null}', "\0"]
)
def test_a_damaged_list_of_frozen_files_is_told(published, content):
    """One that was cut off ended in a traceback; one of another shape let everything be published."""
    (published / "recipes/demo/results/v1/frozen.json").write_text(content)
    table = load_table("demo")
    with pytest.raises(UserError, match=r"frozen\.json is no list of frozen files with their SHA-256.*Restore it"):
        keep(table, published / "runs", table.results)
