import pytest
from demo import write_run_into
from product import run_rows, write_product

from clars.lab import runs
from clars.lab.recipes.load import load
from clars.lab.tables.definition import load_table
from clars.lab.tables.scaling import kept, lines, steps_to


@pytest.fixture
def found(demo, tmp_path):
    """The lines of the product: of CLARS, and of LARS at its smallest batch only."""
    write_product(demo, searched=False, replace={"      batches_of: {net: [64, 512]}\n": ""})
    table = load_table("demo")
    accuracies = {"net/clars-64": [90.0, 92.0], "net/clars-256": [90.5, 90.5], "net/clars-512": [95.0, 85.0]}
    run_rows(table, tmp_path, accuracies | {"net/lars-64": [80.0]})
    return lines(table, tmp_path)


def test_a_line_for_each_method_with_runs(found):
    assert [(line.label, [(batch, len(of)) for batch, of in line.points]) for line in found] == [
        ("CLARS", [(64, 2), (256, 2), (512, 2)]),
        ("LARS", [(64, 1)]),
    ]


def test_the_largest_batch_without_loss(found):
    """91 at batch 64; 90.5 at 256 is still within half a point, 90 at 512 is not."""
    one = kept(found[0])
    assert (one.smallest, one.accuracy, one.largest) == (64, 91.0, 256)
    assert kept(found[1]).largest == 64


def test_a_loss_that_is_made_up_for_later_ends_it(found):
    batches = dict(found[0].points)
    turned = type(found[0])(
        "net", "clars", "CLARS", "scaled", [(64, batches[64]), (256, batches[512]), (512, batches[64])]
    )
    assert kept(turned).largest == 64


@pytest.mark.parametrize("target, steps", [(65.0, 3.0), (70.0, 3.0), (75.0, 4.5), (90.0, 9.0), (90.1, None)])
def test_steps_to_a_target_are_interpolated_between_evaluations(demo, tmp_path, target, steps):
    """Evaluations after 3, 6 and 9 steps give 70, 80 and 90 %."""
    run = runs.read_folder(write_run_into(tmp_path / "seed0", load("demo/large"), 0, 90.0))
    assert steps_to(run, target) == steps
