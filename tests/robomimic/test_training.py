"""robomimic's training by our command: the config that we ship, errors, and the files of a run."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mcr import UserError
from mcr.robomimic.comparison import (
    SCRATCH,
    Scale,
    TableRow,
    compare,
    format_table,
)
from mcr.robomimic.training import merge, read_config, read_progress, train

ROOT = Path(__file__).parents[2]


def test_ready_config_trains_and_prints_the_success_rate(
    small_config, lift, encoder_path, tmp_path, command
):
    result = command(
        "scripts/train_robomimic.py",
        *("--config", str(small_config), "--dataset", str(lift), "--weights", encoder_path),
        *("--output", "runs", "--name", "policy"),
        folder=tmp_path,
    )
    assert "success rate after epoch 2: 0%" in result.stdout
    (trained,) = (tmp_path / "runs" / "policy").iterdir()
    progress = read_progress(trained)
    assert progress.loss.keys() == progress.epoch_s.keys() == {1, 2}
    assert progress.success == {2: 0.0}
    (saved,) = (trained / "models").iterdir()
    checkpoint = torch.load(saved, weights_only=True)
    assert checkpoint["algo_name"] == "bc"


def test_what_a_user_can_fix_is_one_line(small_config):
    result = subprocess.run(
        [
            *(sys.executable, "scripts/train_robomimic.py"),
            *("--config", str(small_config), "--dataset", "nowhere.hdf5"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: train.data=nowhere.hdf5")


def test_refusals(small_config, lift, tmp_path):
    config = merge(read_config(small_config), {"train": {"data": str(lift)}})
    (tmp_path / "exists").mkdir()
    for changes, complaint in [
        ({"algo_name": "bcc"}, "did you mean 'bc"),
        ({"train": {"epochs": 3}}, "'epochs' does not exist"),
        (
            {"train": {"output_dir": str(tmp_path)}, "experiment": {"name": "exists"}},
            "exists: give",
        ),
    ]:
        with pytest.raises(UserError, match=complaint):
            train(merge(config, changes))


def test_files_that_are_no_config_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_config(tmp_path / "none.json")
    for content, complaint in [("{", "is not JSON"), ("{}", "lacks algo_name")]:
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(UserError, match=complaint):
            read_config(tmp_path / "bad.json")


def test_merge_is_deep_and_leaves_its_arguments():
    config = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(config, {"a": {"c": None, "e": 4}}) == {"a": {"b": 1, "c": None, "e": 4}, "d": 3}
    assert config == {"a": {"b": 1, "c": 2}, "d": 3}


# ------------------------------------------------------------------------ the example


def test_table_tells_rate_interval_and_ratio():
    rows = [
        TableRow("BC", "encoder, features cached", 1000, 0.005, 0.01, 15, 20),
        TableRow("BC", "encoder, in the loop", 15, 0.2, 0.01, 0, 0),
    ]
    lines = format_table(rows).splitlines()
    assert len({len(line) for line in lines[:3]}) == 1
    assert lines[1].endswith("15/20 (53% to 89%)")
    assert lines[2].endswith("only timed")
    assert lines[3] == "BC, encoder, features cached: steps are 40 times as fast as in the loop"


def test_length_of_training():
    """All policies of an algorithm have the same number of steps, unless they are only timed."""
    scale = Scale(bc_epochs=4, rnn_epochs=8)
    trained = scale.length("BC-RNN", "nothing else")
    assert trained["train"] == {"num_epochs": 8}
    assert trained["experiment"]["rollout"] == {"enabled": True, "n": 20, "rate": 8}
    assert scale.length("BC", SCRATCH) == scale.length("BC", "nothing else")
    for timed in [("BC", "untrained encoder, in the loop"), ("BC-RNN", SCRATCH)]:
        assert not scale.length(*timed)["experiment"]["rollout"]["enabled"]
        everything = replace(scale, everything=True)
        assert everything.length(*timed) == scale.length(timed[0], "nothing else")


def test_comparison_refuses_an_existing_folder(tmp_path):
    with pytest.raises(UserError, match="exists"):
        compare(tmp_path, ROOT / "cfgs" / "robomimic_bc_mcr.json")


@pytest.mark.slow
def test_example_runs(encoder_path, tmp_path, command):
    result = command(
        "scripts/robomimic_example.py",
        *("--small", "--weights", encoder_path, "--out", str(tmp_path / "out")),
    )
    table = result.stdout[result.stdout.index("policy  ") :]
    assert table.count("BC-RNN") == 6  # five inputs and the ratio
    assert table.count("only timed") == 3
    for name in ("nothing else", "untrained encoder", "ResNet18Conv from scratch"):
        assert name in table
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 10
