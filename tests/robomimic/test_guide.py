"""docs/robomimic.md: every block runs, in order, in one folder, as a reader would type them."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from robomimic.models.obs_core import VisualCore

import mcr.robomimic  # noqa: F401  registers

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "robomimic.md"
# What takes long or is this run itself; the test that stands for it.
ELSEWHERE = {
    "pip install .[robomimic]": "this environment",
    "bash scripts/test.sh robomimic": "this run",
    "python scripts/robomimic_example.py": "test_training.py::test_example_runs",
    "python scripts/record_lift.py": "the fixture desk",
}


def blocks(language: str) -> list:
    text = GUIDE.read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n") + 1, match[1]) for match in found]


def test_python_blocks_run_in_order(desk, monkeypatch, small_config, capsys):
    monkeypatch.chdir(desk)
    for line, source in blocks("python"):
        exec(compile("\n" * line + source, str(GUIDE), "exec"), {"__name__": "guide"})
    assert (desk / "lift_features.hdf5").exists()
    assert "Success_Rate" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(("line", "source"), blocks("bash"))
def test_bash_block(line, source, desk, command, small_config, tmp_path):
    for text in source.splitlines():
        if any(text.startswith(begin) for begin in ELSEWHERE):
            check_is_elsewhere(text, command)
            continue
        words = shlex.split(text)
        words = [str(small_config) if word.startswith("cfgs/") else word for word in words]
        words[words.index("runs")] = str(tmp_path / "runs")
        assert words[0] == "python"
        assert "success rate" in command(*words[1:], folder=desk).stdout


def check_is_elsewhere(text: str, command) -> None:
    words = shlex.split(text)
    if words[0] == "python":
        usage = command(words[1], "--help").stdout
        assert all(word in usage for word in words if word.startswith("--"))
    elif words[0] == "bash":
        assert (ROOT / words[1]).exists()
    else:
        assert '"robomimic": [' in (ROOT / "setup.py").read_text()


@pytest.mark.parametrize(("line", "source"), blocks("json"))
def test_json_block_is_part_of_a_config(line, source, desk, monkeypatch):
    monkeypatch.chdir(desk)
    part = json.loads(source)
    assert part["core_class"] == "VisualCore"
    network = VisualCore(input_shape=[3, 84, 84], **part["core_kwargs"])
    assert network(torch.rand(1, 3, 84, 84)).shape == (1, 512)


def test_links_to_files_exist():
    links = re.findall(r"\]\((\.\.?/[^)#]+)\)", GUIDE.read_text())
    assert links and all((GUIDE.parent / link).exists() for link in links)


def test_versions_are_those_of_setup():
    extra = re.search(r'"robomimic": \[(.*?)\]', (ROOT / "setup.py").read_text(), re.DOTALL)[1]
    for name, version in re.findall(r'"(\w+)==([\d.]+)"', extra):
        assert re.search(rf"^\| {name} \| {version} \|", GUIDE.read_text(), re.M | re.I), name
