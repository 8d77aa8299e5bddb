"""What --help, --version and a wrong option answer, for every command."""

import shlex

import pytest
import typer

from clars.lab import cli
from clars.lab.commands.settings import OTHER_NAMES, setting
from clars.lab.recipes.schema import Recipe


def commands(command=None, words=()):
    """Yield every command that has no further ones, with the words that call it."""
    command = command or typer.main.get_command(cli.app)
    below = getattr(command, "commands", {})
    for name, each in below.items():
        yield from commands(each, (*words, name))
    if not below:
        yield words, command


def answer(capsys, *words):
    with pytest.raises(SystemExit) as left:
        cli.main(list(words))
    return left.value.code, *capsys.readouterr()


@pytest.mark.parametrize(
    "words, command", list(commands()), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_help_shows_examples_and_the_command_takes_them(words, command, capsys):
    code, text, _ = answer(capsys, *words, "-h")
    assert code == 0
    assert answer(capsys, *words, "--help")[1] == text
    examples = [line.strip() for line in text.splitlines() if line.startswith("    clars ")]
    assert examples, text
    for example in examples:
        name, *given = shlex.split(example)
        assert (name, *given[: len(words)]) == ("clars", *words)
        command.make_context(" ".join(words), given[len(words) :], resilient_parsing=False)


def test_the_version_is_that_of_the_package(capsys):
    from importlib.metadata import version

    assert answer(capsys, "--version")[:2] == (0, f"clars {version('clars')}\n")


@pytest.mark.parametrize(
    "option, hint",
    [
        (["--epochs", "2"], "epochs=2"),
        (["--lr=3"], "schedule.base_rate=3"),
        (["--batch-size", "64"], "batch_size=64"),
        (["--momentum"], "optimizer.momentum=..."),
        (["--image_size", "8"], "data.image_size=8"),
    ],
)
@pytest.mark.parametrize("command", ["run", "show", "tune", "noise"])
def test_an_option_that_is_a_setting_is_answered_by_its_name(command, option, hint, capsys):
    code, _, text = answer(capsys, command, "quickstart/clars-512", *option)
    assert code == 2 and f"It is a setting of the recipe: {hint}" in " ".join(text.split())


def test_other_unknown_options_are_answered_as_ever(capsys):
    code, _, text = answer(capsys, "run", "quickstart/clars-512", "--sead", "2")
    assert code == 2 and "No such option: --sead" in text and "--seed" in text and "setting" not in text


def test_the_names_that_other_tools_have_lead_to_settings():
    for name in OTHER_NAMES.values():
        section, _, key = name.partition(".")
        field = Recipe.model_fields[section]
        assert not key or key in field.annotation.model_fields
    assert setting("--epochs") == "epochs" and setting("--nothing-of-ours") is None
