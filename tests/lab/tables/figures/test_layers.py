import re

import numpy as np
import pytest
from demo import seal, write_run

from clars.lab.runs.metrics import Metrics
from clars.lab.tables.definition import load_table
from clars.lab.tables.figures import layers
from clars.lab.tables.figures.panels import paint


def run(out, names, steps=3, noise=1.0):
    """A run with statistics of layers of these names."""
    folder = write_run(out, "large")
    values = {"weight_norm": 1.0, "gradient_norm": 1.0, "example_norm_sum": 2.0, "variance_factor": 3.0, "ratio": 0.1}
    Metrics(folder / "layers.jsonl").append(
        *(
            {"step": step, "layer": name, "noise_scale": noise, **values}
            for step in range(1, steps + 1)
            for name in names
        )
    )
    seal(folder)
    return layers.figure(load_table("demo"), out)


@pytest.mark.parametrize("count, named", [(5, 5), (43, 43), (362, 41)])
def test_layers_have_their_own_names_as_many_as_there_is_a_place_for(demo, tmp_path, count, named):
    names = [f"blocks.{number}.conv" for number in range(count)]
    sketch = run(tmp_path, names)
    paint(tmp_path / "layers.svg", sketch.panels, sketch)
    found = re.findall(r">(blocks\.\d+\.conv)<", (tmp_path / "layers.svg").read_text())
    assert found[0] == names[0] and set(found) <= set(names)
    chosen = {names[0], names[count // 2], names[-1]}  # whose curves stand below the maps
    assert named <= len(set(found)) <= named + len(chosen) and chosen <= set(found)


def test_a_run_with_one_step_has_one_point(demo, tmp_path):
    assert [panel.points for panel in run(tmp_path, ["conv"], steps=1).panels] == [1]


def test_a_measure_that_is_known_nowhere_is_said_to_be_so(demo, tmp_path):
    sketch = run(tmp_path, ["conv", "fc"], noise=None)
    paint(tmp_path / "layers.svg", sketch.panels, sketch)
    assert (tmp_path / "layers.svg").read_text().count(">infinite, or not known<") == 1


def test_curves_are_geometric_means_with_gaps_where_less_than_half_is_known():
    assert layers._mean(np.array([1.0, 4.0])) == pytest.approx(2.0)
    assert layers._mean(np.array([np.nan, 4.0])) == pytest.approx(4.0)
    assert np.isnan(layers._mean(np.array([np.nan, 4.0, np.nan])))
