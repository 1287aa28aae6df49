"""The summary of a run: its curves, and the page that shows all that the folder holds."""

import base64
import re

import pandas as pd
import pytest
from PIL import Image

from mcr.errors import UserError
from mcr.training.curves import plot_curves
from mcr.training.run_folder import read_metrics
from mcr.training.summary import write_summary


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml: no such file; give the run_dir"):
        write_summary(tmp_path)


def test_curves_are_those_of_the_log(run_dir):
    def pixels(metrics):
        plot_curves(metrics, run_dir / "curves.png")
        return (run_dir / "curves.png").read_bytes()

    metrics = read_metrics(run_dir)
    changed = metrics.assign(**{"time_contrastive/loss": pd.Series([9.0, 1.0, 9.0, 1.0, 9.0])})
    assert pixels(metrics) == pixels(metrics.copy()) != pixels(changed)
    with Image.open(run_dir / "curves.png") as image:
        assert image.width == 13 * 110


def test_page_holds_all_of_it_and_needs_no_other_file(run_dir):
    page = write_summary(run_dir).read_text()
    for fact in (
        "not finished: step 5 of 9",
        "resnet18, 32 px",
        "time contrastive: accuracy</td><td>0.5367</td><td>0.6</td><td>0.2",
        "<code>optimizer.lr</code></td><td>0.123</td><td>0.0001",
        "7 episodes &lt;b&gt;",
        f'mcr.load_model("{run_dir / "checkpoints" / "step_00000005.pt"}")'.replace('"', "&#34;"),
        "-m mcr.training.train &#39;a.b=c d&#39;",  # the command
    ):
        assert fact in page, fact
    assert "run_dir" not in page.split("Changed from")[1].split("<h2>")[0]
    sources = re.findall(r'src="(.{22})([^"]*)"', page)
    assert {start for start, _ in sources} == {"data:image/png;base64,"}
    images = [base64.b64decode(data) for _, data in sources]
    first, last = ((run_dir / "pictures" / f"step_{s:08d}_clips.png") for s in (0, 4))
    assert images == [p.read_bytes() for p in (run_dir / "summary.png", first, last)]
    assert not list(run_dir.glob("*.partial"))


def test_a_run_that_logged_nothing_has_a_page(run_dir):
    (run_dir / "metrics.jsonl").write_text("")
    assert "step 0 of 9" in write_summary(run_dir).read_text()
