"""Comparison of runs: hand-computed means and deviations, the table, the plot."""

import json

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from PIL import Image

from mcr.errors import UserError
from mcr.evaluation.comparison import compare_runs, plot_comparison, summarise_runs, to_markdown
from mcr.training.config import Config


@pytest.fixture
def runs():
    rows = [
        ("a_change", 0, 0.5, np.nan),
        ("full", 0, 0.6, 20.0),
        ("full", 1, 0.8, 30.0),
        ("b_change", 0, -0.25, 1.0),
    ]
    return pd.DataFrame(rows, columns=["variant", "seed", "accuracy", "rank"])


def test_summary_has_mean_and_sample_deviation_over_seeds(runs):
    table = summarise_runs(runs, first="full")
    assert table.index.tolist() == ["full", "a_change", "b_change"]
    assert table[("seeds", "")].tolist() == [2, 1, 1]
    assert table.loc["full", ("accuracy", "mean")] == pytest.approx(0.7)
    assert table.loc["full", ("accuracy", "sd")] == pytest.approx(0.2 / np.sqrt(2))
    assert np.isnan(table.loc["a_change", ("rank", "mean")])
    assert summarise_runs(runs).index.tolist() == ["a_change", "b_change", "full"]


def test_markdown_counts_seeds_and_leaves_missing_cells_empty(runs):
    assert to_markdown(summarise_runs(runs, first="full")).splitlines() == [
        "| variant | seeds | accuracy | rank |",
        "|---|---|---|---|",
        "| full | 2 | 0.700 ± 0.141 | 25.0 ± 7.1 |",
        "| a_change | 1 | 0.500 |  |",
        "| b_change | 1 | -0.250 | 1.000 |",
    ]


def test_picture_grows_with_variants_and_metrics(runs, tmp_path):
    sizes = {}
    for metrics in (["accuracy"], ["accuracy", "rank"]):
        plot_comparison(runs, tmp_path / "c.png", metrics, first="full")
        with Image.open(tmp_path / "c.png") as image:
            sizes[len(metrics)] = image.size
    assert sizes[2][0] - sizes[1][0] == 231 and sizes[1][1] == sizes[2][1] == 220


def test_runs_are_gathered_from_folders(tmp_path):
    for run, seed, accuracy in (("full/seed0", 0, 0.5), ("full/seed1", 1, 0.7), ("other", 0, 0.3)):
        folder = tmp_path / "runs" / run
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(
            OmegaConf.to_yaml(OmegaConf.structured(Config(seed=seed)))
        )
        line = {"step": 4, "split": "val", "time_contrastive/accuracy": accuracy}
        (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    text = compare_runs([tmp_path / "runs"], tmp_path / "out", first="other", probe=False)
    table = pd.read_csv(tmp_path / "out/comparison.csv")
    assert table.columns.tolist() == ["variant", "seed", "time accuracy"]
    assert table.values.tolist() == [["full", 0, 0.5], ["full", 1, 0.7], ["other", 0, 0.3]]
    assert text == (tmp_path / "out/comparison.md").read_text()
    assert [line.split(" | ")[0] for line in text.splitlines()[2:]] == ["| other", "| full"]
    assert (tmp_path / "out/comparison.png").stat().st_size > 1000
    with pytest.raises(UserError, match="no training run"):
        compare_runs([tmp_path / "out"])
