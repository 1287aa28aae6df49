"""Every option of every command line refuses values out of its range, before anything is opened."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from mcr.cli import COMMANDS, Parser, import_command, run
from mcr.errors import UserError
from mcr.runs.ranges import Range

ROOT = Path(__file__).parents[1]
WITH_PARSER = sorted(
    path for path in (ROOT / "scripts").glob("*.py") if "def make_parser" in path.read_text()
)


def parser_of_command(name: str) -> Parser:
    parser = Parser(prog=f"mcr {name}")
    import_command(name).add_arguments(parser)
    return parser


def parser_of_script(path: Path, monkeypatch) -> Parser:
    monkeypatch.syspath_prepend(str(path.parent))
    return runpy.run_path(str(path))["make_parser"]()


def options_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Those with a value."""
    return [action for action in parser._actions if action.option_strings and action.nargs != 0]


def check(parser: Parser) -> None:
    """Try each option with each value out of its range, beside nothing else that is wrong."""
    required = [a for a in parser._actions if a.required and not a.option_strings]
    others = ["x" for action in required]
    for group in (a for a in parser._mutually_exclusive_groups if a.required):
        others += [group._group_actions[0].option_strings[0], "x"]
    for action in options_of(parser):
        name = action.option_strings[0]
        assert action.type not in (int, float), f"{name}: give it a range of mcr/runs/ranges.py"
        if action.choices is not None:
            assert isinstance(action.type, Range), f"{name}: a misspelt choice names no nearest one"
        if not isinstance(action.type, Range):
            continue  # any text; what it names is looked for by the command
        outside = [value for value in map(str, action.type.outside) if not is_held(action, value)]
        assert outside, f"{name} has no value out of its range"
        for value in outside:
            with pytest.raises(UserError, match=f"argument {name}.*(must be|is unknown)") as error:
                parser.parse_strictly([*others, f"{name}={value}"])
            assert "\n" not in str(error.value)


def is_held(action: argparse.Action, text: str) -> bool:
    """Is this text, on a command line, in the range?"""
    try:
        action.type(text)
    except argparse.ArgumentTypeError:
        return False
    return True


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"train", "bc"}))
def test_options_of_commands(name):
    check(parser_of_command(name))


@pytest.mark.parametrize("path", WITH_PARSER, ids=lambda path: path.stem)
def test_options_of_scripts(path, monkeypatch):
    check(parser_of_script(path, monkeypatch))


def test_no_script_has_options_that_are_not_checked():
    """Scripts without a value to give, or without mcr, may use argparse itself."""
    plain = {"check_environment", "list_schemas", "summarise_demo"}
    found = {
        path.stem
        for path in (ROOT / "scripts").glob("*.py")
        if "argparse.ArgumentParser(" in path.read_text()
    }
    assert found == plain
    for name in plain:
        text = (ROOT / "scripts" / f"{name}.py").read_text()
        assert not re.search(r'add_argument\(\s*"-', text)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("index x --workers -1", "argument --workers: -1 must be a whole number of at least 0"),
        ("clean x --workers 0", "argument --workers: 0 must be a whole number of at least 1"),
        ("record robosuite/lift c --picture-size 0", "--picture-size: 0 must be a whole number"),
        ("record robosuite/lift c --noise nan", "argument --noise: nan must be a finite number"),
        ("record robosuite/lift c --looks varid", "'varid' is unknown; did you mean 'varied'?"),
        ("evaluate e --suite ofline", "'ofline' is unknown; did you mean 'offline'?"),
        ("evaluate e --suite offline --val-fraction nan", "nan must be a finite number"),
        ("evaluate e --suite offline --seeds -2", "-2 must be a whole number of at least 1"),
        ("features a b c --dtype fp61", "'fp61' is unknown; did you mean 'fp16'?"),
        ("features a b c --device gpu", "'gpu' must be a device: cpu, cuda"),
        ("extract a b --engine rya", "'rya' is unknown; did you mean 'ray'?"),
        ("centricity e --pictures p --masks m --threshold inf", "inf must be a finite number"),
    ],
)
def test_named_tries(line, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(complaint)) as error:
        run(line.split())
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_script_prints_one_sentence_and_exits_with_2(tmp_path):
    script = [sys.executable, str(ROOT / "scripts" / "record_pusht.py"), "out", "--steps", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: argument --steps: 0 must be a whole number of at least")
    assert result.stderr.count("\n") == 1
