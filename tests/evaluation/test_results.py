"""Results of an evaluation: rates against closed forms, refusals, the report."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mcr.errors import UserError
from mcr.evaluation.results import MEAN, Results, success_rates, to_markdown

AB = {"weights": "ab"}


def rows(encoder: str, task: str, successes: list[int], trials: int = 10, weights: str = "ab"):
    return [
        {
            "encoder": encoder,
            "policy": "pooled",
            "task": task,
            "weights": weights,
            "seed": str(seed),
            "successes": won,
            "trials": trials,
        }
        for seed, won in enumerate(successes)
    ]


def interval(successes: int, trials: int) -> tuple[float, float]:
    score = success_rates(pd.DataFrame(rows("ours", "a", [successes], trials))).iloc[0]
    return score["low"], score["high"]


def test_intervals_are_wilsons():
    # Brown, Cai, DasGupta 2001: n = 10, 0 successes: upper end z^2 / (n + z^2)
    z = 1.959964
    assert interval(0, 10) == pytest.approx((0.0, z**2 / (10 + z**2)))
    assert interval(10, 10) == pytest.approx((10 / (10 + z**2), 1.0))
    low, high = interval(5, 10)
    assert low + high == pytest.approx(1.0)
    assert low == pytest.approx(0.2366, abs=1e-4)


def test_rates_pool_seeds_and_tasks():
    table = pd.DataFrame(
        rows("ours", "metaworld/a", [5, 7])
        + rows("ours", "metaworld/b", [0, 2])
        + rows("other", "metaworld/a", [10, 10])
    )
    scores = success_rates(table).set_index(["encoder", "task"])
    assert scores.loc[("ours", "metaworld/a"), "value"] == 0.6
    assert scores.loc[("ours", "metaworld/a"), "sd"] == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert scores.loc[("ours", MEAN), "value"] == 14 / 40
    assert scores.loc[("ours", MEAN), ["low", "high"]].tolist() == list(interval(14, 40))
    # the deviation of the seeds' means over tasks, 5/20 and 9/20
    assert scores.loc[("ours", MEAN), "sd"] == pytest.approx(np.std([0.25, 0.45], ddof=1))
    assert ("other", MEAN) not in scores.index  # it lacks a task


def test_pretraining_seeds_are_one_row_with_an_interval_over_seeds_and_rollouts():
    table = pd.DataFrame(
        [
            row
            for task in "ab"
            for seed, won in enumerate(([0, 2], [9, 7], [10, 10]))
            for row in rows(f"mcr/seed{seed}", task, won)
        ]
        + rows("other/seed0", "a", [5])
    )
    scores = success_rates(table).set_index(["encoder", "task"])
    name = "mcr (3 seeds)"
    assert list(scores.index) == [(name, "a"), (name, "b"), (name, MEAN), ("other/seed0", "a")]
    assert scores.loc[(name, MEAN), "value"] == pytest.approx(38 / 60)
    assert scores.loc[(name, MEAN), "sd"] == pytest.approx(np.std([0.1, 0.8, 1.0], ddof=1))
    low, high = scores.loc[(name, MEAN), ["low", "high"]]
    assert low < 0.2 and high > 0.95  # Wilson's over 120 rollouts is 0.54 to 0.72
    assert scores.loc[("other/seed0", "a"), "low"] == interval(5, 10)[0]


def test_a_recipe_has_the_tasks_that_each_of_its_seeds_has():
    table = pd.DataFrame(
        [
            row
            for seed, tasks in enumerate(("ab", "a"))
            for task in tasks
            for row in rows(f"mcr/seed{seed}", task, [5])
        ]
    )
    scores = success_rates(table)
    assert scores[["encoder", "task"]].to_numpy().tolist() == [["mcr (2 seeds)", "a"]]


def test_policies_are_rows_of_their_own():
    both = [
        row | {"policy": policy}
        for name, won in (("ours/seed0", [1]), ("ours/seed1", [3]), ("other", [7]))
        for policy in ("pooled", "tokens")
        for row in rows(name, "a", won)
    ]
    alone = [row | {"policy": ""} for row in rows("proprioception only", "a", [2])]
    names = success_rates(pd.DataFrame(both + alone))["encoder"].tolist()
    recipe = "ours (2 seeds)"
    assert names == [recipe, f"{recipe}, tokens", "other", "other, tokens", "proprioception only"]


def test_rows_of_an_earlier_version_are_of_the_usual_policy(tmp_path):
    old = rows("ours", "a", [1]) + rows("proprioception only", "a", [1], weights="")
    for row in old:
        del row["policy"]
    pd.DataFrame(old).to_csv(tmp_path / "results.csv", index=False)
    results = Results(tmp_path, {})
    assert results.has("ours", AB, "a", "pooled") and not results.has("ours", AB, "a", "tokens")
    assert results.has("proprioception only", {"weights": ""}, "a", "")


def test_table_has_the_best_encoder_first_and_the_mean_last():
    table = pd.DataFrame(
        [row for t in "ab" for row in rows("worse", t, [1]) + rows("better", t, [9])]
    )
    lines = to_markdown(success_rates(table), percent=True).splitlines()
    assert lines[0] == "| encoder | a | b | mean |"
    assert lines[2].startswith("| better | 90% (60 to 98) | 90% (60 to 98) | 90% (")
    assert lines[3].startswith("| worse | 10% (2 to 40)")


def test_added_rows_are_read_again(tmp_path):
    Results(tmp_path, {"rollouts": 10}).add(rows("ours", "a", [1, 2]))
    again = Results(tmp_path, {"rollouts": 10})
    again.add(rows("ours", "b", [3]))
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert [line.split(",")[-2:] for line in lines[1:]] == [["1", "10"], ["2", "10"], ["3", "10"]]
    again = Results(tmp_path, {"rollouts": 10})
    assert again.has("ours", AB, "a") and again.has("ours", AB, "b")
    assert not again.has("ours", AB, "c") and not again.has("other", AB, "a")
    assert again.rows["successes"].tolist() == [1, 2, 3]


def test_rows_without_weights_are_recognised(tmp_path):
    Results(tmp_path, {}).add(rows("proprioception only", "a", [1], weights=""))
    assert Results(tmp_path, {}).has("proprioception only", {"weights": ""}, "a")


def test_other_weights_under_the_same_name_are_refused(tmp_path):
    results = Results(tmp_path, {})
    results.add(rows("ours", "a", [1]))
    with pytest.raises(UserError, match=r"'ours' are of other weights \(ab, not cd\).*NAME=PATH"):
        results.has("ours", {"weights": "cd"}, "a")


def test_other_preprocessing_under_the_same_name_is_refused(tmp_path):
    results = Results(tmp_path, {})
    results.add([row | {"preprocessing": "resize 256"} for row in rows("ours", "a", [1])])
    assert results.has("ours", AB | {"preprocessing": "resize 256"}, "a")
    with pytest.raises(UserError, match=r"other preprocessing \(resize 256, not resize 232\)"):
        results.has("ours", AB | {"preprocessing": "resize 232"}, "a")


def test_remarks_stand_below_the_table(tmp_path):
    results = Results(tmp_path, {})
    results.add(rows("ours", "a", [1, 2]))
    text = results.write_report(success_rates(results.rows), percent=True, remarks="ours: tired.")
    assert text.endswith("|\n\nours: tired.\n") and (tmp_path / "results.md").read_text() == text


def test_another_protocol_is_refused(tmp_path):
    Results(tmp_path, {"rollouts": 20})  # an evaluation that measured nothing
    Results(tmp_path, {"rollouts": 10, "cameras": ("corner2",)}).add(rows("ours", "a", [1]))
    Results(tmp_path, {"rollouts": 10, "cameras": ("corner2",)})
    with pytest.raises(UserError, match=r"another protocol \(rollouts=10, not 20\).*--out"):
        Results(tmp_path, {"rollouts": 20, "cameras": ("corner2",)})


def test_report_is_a_table_and_a_picture(tmp_path):
    results = Results(tmp_path, {})
    results.add(rows("ours", "a", [1, 2]) + rows("ours", "b", [3, 4]) + rows("other", "a", [5]))
    text = results.write_report(success_rates(results.rows), percent=True)
    assert (tmp_path / "results.md").read_text() == text
    assert np.asarray(Image.open(tmp_path / "results.png").convert("L")).std() > 5
