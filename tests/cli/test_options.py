"""Options made from the settings: what is declared is shown, checked and passed on."""

import dataclasses
import math
from dataclasses import dataclass

import pytest
import typer

from linnet.cli.errors import UserError, file_errors, user_input
from linnet.cli.evolve.settings import EvolveSettings
from linnet.cli.options import Given, settings_command
from linnet.cli.setting import check_settings, option, option_names
from linnet.cli.task.settings import TaskSettings
from linnet.cli.train.settings import Settings


@dataclass(frozen=True)
class Toy:
    word: str = option("a", "A word.", choices=("a", "b"), name="WORD")
    count: int = option(3, "A count.", high=9)
    least: int = option(0, "An integer.", low=0)
    rate_of: float | None = option(None, "A rate.", shown="what fits")
    share: float = option(0.5, "A share.", high=1)
    any_number: float = option(0.0, "A number.", low=-math.inf)
    items: tuple[str, ...] = option(("x",), "Items.", name="--item")
    flag: bool = option(False, "A flag.")

    def __post_init__(self):
        check_settings(self)


def parsed(*arguments, nproc=None):
    """What the command was given."""
    taken = []

    @settings_command(Toy, out="runs/TOY", nproc=nproc)
    def toy(given: Given) -> None:
        """Help of the toy."""
        taken.append(given)

    app = typer.Typer(add_completion=False)
    app.command()(toy)
    app(args=list(arguments), standalone_mode=False)
    return taken[0] if taken else None


def test_only_what_is_given_is_passed_on():
    assert parsed().values == {} and parsed().settings() == Toy()
    given = parsed("b", "--count", "3", "--item", "y", "--item", "z", "--flag", "--rate-of", "0.1")
    assert given.values == {"word": "b", "count": 3, "items": ("y", "z"), "flag": True, "rate_of": 0.1}
    assert given.settings() == Toy("b", 3, items=("y", "z"), flag=True, rate_of=0.1)
    assert (given.out, given.resume, given.nproc) == (None, False, 1)
    assert parsed("--nproc", "4", nproc="Help.").nproc == 4
    assert str(parsed("--out", "x").folder("name")) == "x"
    assert parsed().folder("a/b c").match("runs/a-b-c-*-*")


def test_the_help_shows_the_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    parsed("--help")
    text = capsys.readouterr().out
    for line in (
        "Help of the toy.",
        "A count. [default: 3]",
        "A rate. [default: (what fits)]",
        "Items. [default: x]",
        "A flag.",
        "Folder of the run. [default: (runs/TOY)]",
        "Resume the run in --out with its saved settings.",
    ):
        assert line in text
    assert "WORD" in text and "--no-flag" not in text and "--nproc" not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"word": "c"}, "word must be one of a, b, got 'c'"),
        ({"count": 0}, "count must be a positive integer up to 9, got 0"),
        ({"count": 10}, "count must be a positive integer up to 9, got 10"),
        ({"count": True}, "count must be a positive integer up to 9, got True"),
        ({"count": 1.0}, "count must be a positive integer up to 9, got 1.0"),
        ({"count": None}, "count must be a positive integer up to 9, got None"),
        ({"least": -1}, "least must be an integer from 0 to 2147483647, got -1"),
        ({"rate_of": 0.0}, "rate_of must be positive and finite, got 0.0"),
        ({"rate_of": math.inf}, "rate_of must be positive and finite, got inf"),
        ({"rate_of": math.nan}, "rate_of must be positive and finite, got nan"),
        ({"share": 0}, "share must be positive and at most 1, got 0"),
        ({"share": 1.5}, "share must be positive and at most 1, got 1.5"),
        ({"any_number": -math.inf}, "any_number must be finite, got -inf"),
        ({"any_number": "x"}, "any_number must be finite, got 'x'"),
    ],
)
def test_values_that_an_option_does_not_allow(change, message):
    with pytest.raises(ValueError) as error:
        Toy(**change)
    assert str(error.value) == message


def test_values_that_are_allowed():
    Toy("b", 9, 2**31 - 1, None, 1, -1e30, (), True)
    Toy(rate_of=1e-30, share=1e-3)


def test_settings_are_named_as_their_options():
    names = option_names(Toy)
    assert names["rate_of"] == "--rate-of" and names["items"] == "--item" and names["word"] == "WORD"
    with pytest.raises(UserError, match=r"^--rate-of and --item differ from `other` and share$"), user_input(names):
        raise ValueError("rate_of and `items` differ from `other` and share")


@pytest.mark.parametrize("kind", [Settings, EvolveSettings, TaskSettings])
def test_every_setting_is_an_option_that_its_default_satisfies(kind):
    settings = kind()
    for each in dataclasses.fields(kind):
        assert each.metadata["help"].endswith(".")
        assert getattr(settings, each.name) == each.default


def test_errors_name_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"^cannot read .*/none: No such file or directory$"):
        with file_errors("read", tmp_path / "none"):
            (tmp_path / "none").read_text()
    with pytest.raises(ValueError, match=r"^cannot read x: it is strange$"), file_errors("read", "x"):
        raise ValueError("it is strange")
