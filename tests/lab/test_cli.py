import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from demo import SMALL, TABLE, make_repository, write, write_run, write_run_into

from clars.lab import cli, runs
from clars.lab.files import held
from clars.lab.launching import exits, launch
from clars.lab.recipes.load import load
from clars.lab.recipes.schema import Recipe


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    root = make_repository(tmp_path, monkeypatch)
    (root / "configs" / "accelerate").mkdir(parents=True)
    for name in ("cpu", "gpu", "ddp"):
        (root / "configs" / "accelerate" / f"{name}.yaml").write_text("distributed_type: 'NO'\n")
    monkeypatch.setenv("COLUMNS", "120")
    return root


@pytest.fixture
def clars(capsys):
    """Run a command line; return its exit code, what it printed, and its messages."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(list(arguments))
        return end.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def launched(launches):
    """The arguments and configurations of each launch; jobs are answered by runs with made-up accuracies."""
    calls = []

    def answer(arguments, config):
        calls.append((arguments, config.stem))
        if arguments[0] == "--jobs":
            for job in json.loads(Path(arguments[1]).read_text()):
                resolved = load(job["recipe"], job["overrides"])
                write_run_into(Path(job["out"]), resolved, job["seed"], 60.0 + resolved.peak_rate)
        return exits.FINISHED

    launches(answer)
    return calls


def test_recipes_are_listed(clars):
    code, out, _ = clars("recipes")
    assert code == 0
    assert [line.split(maxsplit=2) for line in out.splitlines()] == [
        ["demo/large", "v1", "CLARS at eight times the base batch"],
        ["demo/small", "v1", "Nesterov SGD at the base batch"],
    ]


def test_a_broken_recipe_does_not_hide_the_others(clars, repository):
    write(repository / "recipes", broken="a: b: c\n")
    code, out, _ = clars("recipes")
    assert code == 0
    assert "demo/small" in out
    assert "(cannot be used: " in out


def test_show_prints_a_whole_recipe(clars):
    code, out, _ = clars("show", "demo/large", "epochs=9", "optimizer.weight_decay=5e-4")
    assert code == 0
    assert Recipe(**yaml.safe_load(out)) == load("demo/large", ["epochs=9"]).recipe
    assert load("demo/large").sha256 in out
    assert "# peak rate: 16\n" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("show", "demo/smal"), "error: 'demo/smal' is no recipe in"),
        (("show", "demo/small", "optimizer.nme=x"), "error: override 'optimizer.nme=x': optimizer.nme is not a known"),
        (("run", "demo/small", "epochs=0"), "error: override 'epochs=0': epochs = 0 must be greater than 0."),
        (("run", "demo/small", "--launch", "dpp"), "error: --launch dpp: not in"),
        (("table", "dem"), "error: 'dem' is no recipe folder"),
        (("table", "demo", "--seeds", "0,x"), "'0,x' is no list of whole numbers"),
        (("run", "demo/small", "--micro-batch", "0"), "Invalid value for '--micro-batch'"),
        (("nonsense",), "No such command 'nonsense'"),
        (("run",), "Missing argument"),
    ],
)
def test_mistakes_end_with_2_and_nothing_written(clars, launched, repository, arguments, message):
    before = sorted(repository.rglob("*"))
    code, out, err = clars(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert sorted(repository.rglob("*")) == before
    assert launched == []


def test_a_setting_without_effect_is_a_plain_warning(clars):
    code, _, err = clars("show", "demo/small", "optimizer.layers=parameter")
    assert code == 0
    assert err.startswith("warning: ")
    assert err.endswith("optimizer.layers has no effect with optimizer.name = 'sgd'.\n")


def test_run_launches_training(clars, launched):
    assert clars("run", "demo/small")[0] == 0
    assert launched == [(["demo/small@v1", "--seed=0"], "cpu")]


def test_run_passes_its_options_on(clars, launched):
    options = ["--seed", "1", "--seed", "2", "--out", "there", "--launch", "ddp", "--overwrite", "--micro-batch", "32"]
    more = ["--noise-scale", "0", "--log-with", "tensorboard"]
    clars("run", "demo/small", "epochs=2", "batch_size=128", *options, *more)
    expected = ["demo/small@v1", "epochs=2", "batch_size=128", "--seed=1", "--seed=2", "--out", "there", "--overwrite"]
    assert launched == [([*expected, "--micro-batch", "32", *more], "ddp")]


def test_changed_recipes_and_files_run_apart_from_tables(repository):
    (repository / "mine.yaml").write_text(SMALL)
    changed, mine = load("demo/small", ["epochs=2"]), load("mine.yaml")
    assert [runs.default_out(one) for one in (load("demo/small"), changed, mine)] == [
        Path("runs/demo"),
        Path("runs/changed/demo"),
        Path("runs"),
    ]


@pytest.mark.parametrize(
    "words", [["run", "demo/small"], ["table", "demo"], ["tune", "demo"], ["tune", "demo/small", "--rates", "1"]]
)
@pytest.mark.parametrize("count, taken", [(0, "cpu"), (1, "gpu"), (2, "ddp"), (3, "gpu")])
def test_what_trains_takes_the_gpus_that_are_there(clars, launched, gpus, words, count, taken):
    """All of them trained on the processor where GPUs were. Three cannot share a batch of 64."""
    gpus(count)
    code, out, _ = clars(*words)
    assert (code, launched[0][1]) == (0, taken)
    assert out.startswith(f"--launch auto takes {taken}: ")
    code, out, _ = clars(*words, "--launch", "cpu", *(["--overwrite"] if words[0] != "run" else []))
    assert (code, launched[1][1]) == (0, "cpu") and "--launch auto" not in out


@pytest.mark.parametrize(
    "words", [["run", "demo/small"], ["table", "demo"], ["tune", "demo"], ["noise", "demo/small", "--overwrite"]]
)
def test_the_precision_goes_to_training(clars, launched, words):
    clars(*words, "--mixed-precision", "bf16")
    ((arguments, _),) = launched
    assert arguments[arguments.index("--mixed-precision") + 1] == "bf16"
    code, _, err = clars(*words, "--mixed-precision", "half")
    assert code == 2 and "'half' is none of no, bf16, fp16" in err and len(launched) == 1


@pytest.mark.parametrize("words", [["--seed", "-1"], ["--seed", str(2**32)], ["--seed", "1.5"]])
def test_a_seed_that_is_none_is_told(clars, launched, words):
    """A seed below zero or beyond 32 bits ended in a traceback of NumPy's."""
    assert clars("run", "demo/small", *words)[0] == 2
    for seeds in (f"0,{words[1]}", words[1]):
        code, _, err = clars("table", "demo", "--seeds", seeds)
        assert code == 2 and "--seeds" in err
        assert clars("tune", "demo/small", "--rates", "1", "--seeds", seeds)[0] == 2
    assert launched == []


@pytest.mark.parametrize("code", [2, 3, 130, 1])
def test_run_answers_what_training_answered(clars, launches, code):
    launches(lambda *_: code)
    assert clars("run", "demo/small")[0] == code


def test_a_table_runs_everything_in_one_launch(clars, launched):
    code, out, _ = clars("table", "demo")
    assert code == 0
    assert launched == [(["--jobs", "runs/demo/jobs.json"], "cpu")]
    assert len(json.loads(Path("runs/demo/jobs.json").read_text())) == 2 * 3
    assert "76.00 ± 0.00" in out
    for name in ("table.md", "table.csv", "figure.png"):
        assert f"wrote runs/demo/{name}" in out
        assert Path("runs/demo", name).stat().st_size > 0
    assert not Path("recipes/demo/results").exists()


def test_a_table_runs_only_what_it_lacks(clars, launched):
    for seed in (0, 1):
        write_run(Path("runs/demo"), "small", seed)
    write_run(Path("runs/demo"), "large", 0, status="diverged")
    clars("table", "demo", "--seeds", "0,1")
    jobs = json.loads(Path("runs/demo/jobs.json").read_text())
    assert [(job["recipe"], job["seed"], job["out"]) for job in jobs] == [("demo/large@v1", 1, "runs/demo/large/seed1")]
    clars("table", "demo", "--seeds", "0,1")
    assert len(launched) == 1
    clars("table", "demo", "--seeds", "0,1", "--overwrite")
    assert launched[1][0] == ["--jobs", "runs/demo/jobs.json", "--overwrite"]
    assert len(json.loads(Path("runs/demo/jobs.json").read_text())) == 4


def test_a_table_of_two_precisions_is_refused_before_it_is_trained(clars, launched):
    write_run(Path("runs/demo"), "small", 0)
    write_run(Path("runs/demo"), "small", 1, mixed_precision="bf16")
    code, _, err = clars("table", "demo")
    assert code == 2 and "one mixed precision" in err and "runs/demo/small/seed1/run.json" in err
    code, _, err = clars("table", "demo", "--mixed-precision", "bf16")
    assert code == 2 and "small/seed0/run.json is in the way: it was made in mixed precision no, not bf16" in err
    assert launched == []


def test_a_table_without_running(clars, launched):
    write_run(Path("there"), "large", 0, 91.0)
    code, out, _ = clars("table", "demo", "--no-run", "--out", "there")
    assert (code, launched) == (0, [])
    assert "91.00" in out
    assert "not run" in out


def test_a_published_table_lies_beside_the_recipes(clars, launched):
    code, out, _ = clars("table", "demo", "--publish")
    assert code == 0
    assert "results/v1/lite/table.md" in out
    assert sorted(path.name for path in Path("recipes/demo/results/v1/lite/large").iterdir()) == [
        "seed0.json",
        "seed1.json",
        "seed2.json",
    ]


@pytest.mark.parametrize("code, expected", [(3, 0), (1, 1), (2, 2), (130, 130)])
def test_a_table_goes_on_after_divergence_only(clars, launches, code, expected):
    launches(lambda *_: code)
    assert clars("table", "demo")[0] == expected
    assert Path("runs/demo/table.md").exists() == (expected == 0)


def test_runs_of_a_changed_recipe_are_not_silently_replaced(clars, launched, repository):
    record = write_run(Path("runs/demo"), "small", 0) / "run.json"
    write(repository / "recipes", small=SMALL + "# changed\n")
    before = record.read_bytes()
    code, _, err = clars("table", "demo")
    assert (code, launched, record.read_bytes()) == (2, [], before)
    assert "is in the way" in err
    code, _, err = clars("table", "demo", "--no-run")
    assert code == 0
    assert err.count("is not counted") == 1


def test_an_output_that_cannot_be_written_is_one_message(clars, launched):
    Path("file").write_text("")
    code, _, err = clars("table", "demo", "--out", "file/runs")
    assert code == 2
    assert err.startswith("error: file")
    assert err.count("\n") == 1


def test_tune_searches_and_tells_the_winners(clars, launched):
    code, out, _ = clars("tune", "demo", "--publish")
    assert code == 0
    assert len(launched) == 1
    jobs = json.loads(Path("runs/demo/search/jobs.json").read_text())
    assert len(jobs) == 2 * 2 * 2
    assert jobs[0]["overrides"] == ["schedule.base_rate=0.1", "evaluation.split=validation"]
    summary = json.loads(Path("runs/demo/search/search.json").read_text())
    assert {name: method["winner"] for name, method in summary["methods"].items()} == {
        "demo/small@v1": 0.1,
        "demo/large@v1": 4.0,
    }
    assert json.loads(Path("recipes/demo/results/v1/lite/search.json").read_text()) == summary
    assert "best, at edge" in out


def test_tune_of_a_recipe(clars, launched):
    code, *_ = clars("tune", "demo/large", "epochs=5", "--rates", "1,2", "--seeds", "7")
    assert code == 0
    jobs = json.loads(Path("runs/tune/demo/large/jobs.json").read_text())
    assert [job["overrides"] for job in jobs] == [
        ["epochs=5", f"schedule.base_rate={rate}", "evaluation.split=validation"] for rate in (1.0, 2.0)
    ]
    summary = json.loads(Path("runs/tune/demo/large/search.json").read_text())
    assert summary["methods"]["demo/large@v1"]["winner"] == 2.0
    assert not Path("recipes/demo/results").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["demo/large"], "say --rates to try"),
        (["demo/large", "--rates", "1", "--publish"], "neither --publish nor --tier"),
        (["demo/large", "--rates", "1,x"], "no list of numbers such as 0.5,1,2"),
        (["demo", "--rates", "1"], "demo is a table"),
        (["demo", "--tier", "full"], "has no tier 'full'"),
    ],
)
def test_what_tune_cannot_mean(clars, launched, words, message):
    code, _, err = clars("tune", *words)
    assert code == 2 and message in err
    assert launched == []


def test_rows_can_be_chosen(clars, launched):
    code, out, _ = clars("table", "demo", "--rows", "lar*", "--seeds", "0")
    assert code == 0
    assert [job["recipe"] for job in json.loads(Path("runs/demo/jobs.json").read_text())] == ["demo/large@v1"]
    assert "not run" in out
    code, _, err = clars("table", "demo", "--rows", "nothing")
    assert code == 2 and "--rows nothing: fits none of small, large" in err


def test_a_table_in_several_launches(clars, launched, monkeypatch):
    """The jobs are dealt out with those of many steps first; what is over already counts as done."""
    write_run(Path("runs/demo"), "large", 0)
    together = []
    monkeypatch.setattr(launch, "at_once", lambda config, jobs, wanted: wanted)
    monkeypatch.setattr(launch, "launch_together", lambda *a: together.append(a) or exits.FINISHED)
    assert clars("table", "demo", "--parallel", "2")[0] == 0
    lists, _, merged = together[0]
    shares = [json.loads(Path(words[1]).read_text()) for words in lists]
    assert [[(job["recipe"][5:10], job["seed"]) for job in share] for share in shares] == [
        [("small", 0), ("small", 2), ("large", 2)],
        [("small", 1), ("large", 1)],
    ]
    assert (merged.count.done, merged.count.total) == (1, 6)


def test_a_table_that_is_being_run_is_left_alone(clars, launched):
    with held(Path("runs/demo")):
        code, _, err = clars("table", "demo")
    assert (code, launched) == (2, [])
    assert "runs/demo: another process is writing there" in err


def test_tune_needs_a_search(clars, launched, repository):
    write(repository / "recipes", table=TABLE.partition("search:")[0])
    code, _, err = clars("tune", "demo")
    assert code == 2
    assert "table.yaml has no `search`" in err


def test_doctor_reports(clars):
    code, out, _ = clars("doctor")
    assert code == 0
    assert all(word in out for word in ("torch", "demo/small", "comes with scikit-learn"))


def test_the_command_is_installed(repository):
    script = Path(sys.executable).with_name("clars")
    done = subprocess.run([script, "show", "demo/nothing"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: 'demo/nothing' is no recipe")


def test_help_lists_the_commands(clars):
    code, out, _ = clars("--help")
    assert code == 0
    names = ("recipes", "show", "run", "table", "tune", "noise", "doctor", "norms")
    assert all(f"\n  {name} " in out for name in names)


def test_plan_tells_the_methods(clars):
    code, out, _ = clars("norms", "plan", "resnet8", "--pixels", "8", "--channels", "1", "--batch", "4", "--timed")
    assert code == 0
    assert "layer3.0.conv2" in out and all(f"{method} 0." in out for method in ("gram", "direct"))
    assert "resnet8, batch 4, 8 px" in out


def test_plan_of_an_unknown_model(clars):
    code, _, err = clars("norms", "plan", "resnt8")
    assert code == 2
    assert "Did you mean" in err
