"""`mcr COMMAND`: help, mistakes, completion, the scripts of the same commands, and real use."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mcr.cli import COMMANDS, completion, overview, run
from mcr.commands.train import pop_gpus
from mcr.errors import UserError

ROOT = Path(__file__).parents[1]
BY_HYDRA = ("train", "bc")
BY_ARGPARSE = sorted(set(COMMANDS) - set(BY_HYDRA))
SCRIPTS = {
    path: command[1]
    for path in sorted((ROOT / "scripts").glob("*.py"))
    if (command := re.search(r'^    main\("(\w+)"\)$', path.read_text(), re.MULTILINE))
}


def mcr(*words, cwd=ROOT) -> subprocess.CompletedProcess:
    """The program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "mcr.cli", *map(str, words)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


# --------------------------------------------------------------------------- help


def test_help_lists_every_command_and_imports_no_torch():
    code = "import sys, mcr.cli; mcr.cli.run(['--help']); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    listed = re.findall(r"^  (\w+)  ", result.stdout, re.MULTILINE)
    assert listed == list(COMMANDS)
    assert result.stdout.endswith("False\n")


def test_commands_that_prepare_data_need_no_torch():
    code = "import sys, mcr.commands.extract, mcr.commands.clean, mcr.commands.index"
    code += "; print(*{'torch', 'hydra', 'scipy', 'matplotlib'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("\n", "")


@pytest.mark.parametrize("command", BY_ARGPARSE)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        run([command, "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: mcr {command} [-h]")
    assert f"\n    mcr {command} " in text, "an example"


@pytest.mark.parametrize(("command", "option"), [("train", "data:"), ("bc", "encoder:")])
def test_every_command_of_hydra_has_help(command, option):
    text = mcr(command, "--help").stdout
    assert f"\n  mcr {command} " in text and option in text


@pytest.mark.parametrize(
    ("script", "command"),
    [pytest.param(*item, id=item[1]) for item in SCRIPTS.items() if item[1] not in BY_HYDRA],
)
def test_a_script_is_its_command(script, command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(script), run_name="__main__")
    by_script = capsys.readouterr().out
    with pytest.raises(SystemExit):
        run([command, "--help"])
    options = [text.split("\n\n", 1)[1] for text in (by_script, capsys.readouterr().out)]
    assert by_script.startswith(f"usage: {script.name} ") and options[0] == options[1]


def test_every_command_of_argparse_has_a_script():
    assert set(SCRIPTS.values()) == {*BY_ARGPARSE, "bc"}


def test_version_and_no_command(capsys):
    assert run(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)
    assert run([]) == 2
    assert capsys.readouterr().out == f"{overview()}\n"


# --------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["exprot", "a", "b"], "mcr has no command 'exprot'; did you mean 'export'?"),
        (["evaluation"], "did you mean 'evaluate'?"),
        (["xyz"], "mcr has no command 'xyz'; choose from: bc, centricity, "),
        (["export", "a", "b", "--forse"], "export has no option --forse; did you mean '--force'?"),
        (["export", "a", "b", "c"], "'c' is one argument too many; see mcr export --help"),
        (["export", "a"], "the following arguments are required: OUT; see mcr export --help"),
        (
            ["features", "a", "b", "c", "--dtype", "fp61"],
            "'fp61' is unknown; did you mean 'fp16'? see mcr",
        ),
        (["--versoin"], "mcr has no option --versoin; did you mean '--version'?"),
        (["train", "--gpus", "many"], "--gpus many: give a number of GPUs"),
    ],
)
def test_a_mistake_is_one_sentence(words, complaint):
    with pytest.raises(UserError) as error:
        run(words)
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_a_mistake_is_printed_and_the_exit_code_is_2():
    result = mcr("exprot")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: mcr has no command 'exprot'; did you mean 'export'?\n"


# --------------------------------------------------------------------------- details


@pytest.mark.parametrize(
    ("words", "variable", "gpus", "rest"),
    [
        ("--gpus 4 steps=2", "", 4, "steps=2"),
        ("--config-name demo --gpus=2 steps=2", "", 2, "--config-name demo steps=2"),
        ("steps=2", "8", 8, "steps=2"),
        ("--gpus 1 steps=2", "8", 1, "steps=2"),
        ("steps=2", "", None, "steps=2"),
    ],
)
def test_number_of_gpus_is_taken_out_of_the_arguments(words, variable, gpus, rest, monkeypatch):
    monkeypatch.setenv("GPUS", variable)
    arguments = words.split()
    assert pop_gpus(arguments) == gpus
    assert arguments == rest.split()


def test_completion_is_a_script_that_bash_accepts(tmp_path):
    pytest.importorskip("shtab")
    script = tmp_path / "completion.bash"
    script.write_text(completion("bash"))
    function = re.search(r"complete .*-F (\w+) mcr", script.read_text())[1]
    typed = "COMP_WORDS=(mcr extract --eng); COMP_CWORD=2"
    code = f"source {script}; {typed}; {function}; echo ${{COMPREPLY[@]}}"
    result = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "--engine\n"
    with pytest.raises(UserError, match="nushell"):
        completion("nushell")


# --------------------------------------------------------------------------- real use

SMALL = ["steps=2", "batch_size=2", "model.image_size=32", "val_clips=4", "pictures_every=0"]
SMALL += ["data.workers=0", "data.selection.min_frames=30", "data.selection.val_fraction=0.25"]


@pytest.fixture(scope="module")
def trained(reference, tmp_path_factory) -> Path:
    """A folder with 1.0.0 (shards), tree, run and my_encoder, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "1.0.0").mkdir()
    for file in reference.iterdir():
        (folder / "1.0.0" / file.name).symlink_to(file)
    for words in (
        ["extract", "1.0.0", "tree", "--workers", "1"],
        ["train", "--config-name", "demo", "data.root=1.0.0", "run_dir=run", *SMALL],
        ["export", "run/checkpoints/step_00000002.pt", "my_encoder"],
    ):
        result = mcr(*words, cwd=folder)
        assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def use(trained, monkeypatch, capsys):
    """`use(command, ...)`: its output, after it ended well, in that folder."""
    monkeypatch.chdir(trained)

    def call(*words: str) -> str:
        assert run(words) == 0
        return capsys.readouterr().out

    return call


def test_inspect(use, trained):
    assert "4 episodes" in use("inspect", "1.0.0", "--out", "picture.png")
    assert (trained / "picture.png").stat().st_size > 1000


def test_index(use, trained):
    text = use("index", "tree", "--index", "elsewhere")
    assert re.search(r"^elsewhere: 4 episodes, \d+ steps$", text, re.MULTILINE)
    assert (trained / "elsewhere/index.json").is_file()


def test_clean(use, trained):
    text = use("clean", "tree")
    assert "nothing was changed" in text and "instruction" not in text
    assert len(pd.read_csv(trained / "tree.report.csv")) == 4
    assert "1 short instruction" in use("clean", "tree", "--min-words", "2")


def test_report(use, trained):
    assert "held-out accuracy of dynamics_alignment" in use("report", "run")
    assert (trained / "run/contact_sheet.png").stat().st_size > 1000


def test_verify(use):
    assert "WRONG" not in use("verify", "my_encoder")


def test_features(use, trained):
    assert "4 episodes" in use("features", "my_encoder", "tree", "features", "--engine", "torch")
    assert np.load(trained / "features/features.npy", mmap_mode="r").shape[1:] == (2, 512)


def test_compare(use, trained):
    assert "| run | 1 |" in use("compare", "run", "--out", "comparison", "--no-probe")
    assert (trained / "comparison/comparison.png").stat().st_size > 1000


def test_bc(trained):
    data = "demonstrations.data=tree demonstrations.val_fraction=0.25"
    options = "observations.encoder=my_encoder policy.epochs=1 run_dir=bc cache_features=False"
    result = mcr("bc", *data.split(), *options.split(), cwd=trained)
    assert result.returncode == 0, result.stderr
    assert (trained / "bc/policy.pt").is_file()
