"""Comparison of runs: hand-computed means and deviations, the table, the plot."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mcr.evaluation.comparison import plot_comparison, summarise_runs, to_markdown


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
