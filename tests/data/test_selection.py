import numpy as np
import pandas as pd
import pytest

from mcr.data.schema import LANGUAGES, Schema
from mcr.data.selection import Episodes, SelectionConfig, select_episodes, split_sessions
from mcr.errors import UserError


class TableIndex:
    """Stands for an index: selection reads only its table."""

    source = "somewhere"
    schema = Schema(min_frames=40)
    languages = LANGUAGES

    def __init__(self, **columns):
        self.table = pd.DataFrame(columns)


def selected(index, **options):
    return select_episodes(index, SelectionConfig(**options))[0].rows.tolist()


def test_filters_count_what_they_leave(reference_index):
    index = reference_index
    episodes, report = select_episodes(index, SelectionConfig(min_frames=40, language="all"))
    assert [index.table["length"][row] for row in episodes.rows] == [45, 41]
    assert episodes.kept is None
    assert report == [
        "all: 4 episodes, 163 frames",
        "min_frames=40: 3 episodes, 131 frames",
        "language=all: 2 episodes, 86 frames",
    ]


def test_language_any_and_words():
    index = TableIndex(
        length=[50] * 4,
        outcome=["success", "failure", "", "success"],
        language_instruction=["", "lift", "lift it", ""],
        language_instruction_2=["", "", "take it", ""],
        language_instruction_3=["", "", "grasp it", "lift the cube"],
    )
    assert selected(index, language="any") == [2, 3]
    assert selected(index, language="any", min_words=1) == [1, 2, 3]
    assert selected(index, language="all") == [2]
    assert selected(index, outcome="success") == [0, 3]


def test_only_the_named_labs_are_used():
    index = TableIndex(length=[50] * 4, lab=["AUTO", "ILIAD", "AUTO", "RAIL"])
    assert selected(index, labs=["AUTO", "RAIL"]) == [0, 2, 3]
    assert (
        "labs=RAIL: 1 episodes, 50 frames"
        in select_episodes(index, SelectionConfig(labs=["RAIL"]))[1]
    )
    with pytest.raises(UserError, match="data.selection.labs='AUTP'.*did you mean 'AUTO'"):
        select_episodes(index, SelectionConfig(labs=["AUTP"]))


def test_episodes_by_name_and_from_a_file(tmp_path):
    index = TableIndex(length=[50, 60, 70, 30], name=["a", "b", "c", "d"])
    file = tmp_path / "good.txt"
    file.write_text("c\r\n\n  b \nd\nelsewhere\n")
    assert selected(index, episodes=["a"]) == [0]
    assert selected(index, episodes=["a", str(file)]) == [0, 1, 2]  # d is too short
    assert select_episodes(index, SelectionConfig(episodes=[str(file)]))[1][-1] == (
        "episodes (4 named, 1 of them not in the data): 2 episodes, 130 frames"
    )
    with pytest.raises(UserError, match="no episode is left by the filter episodes"):
        select_episodes(index, SelectionConfig(episodes=["elsewhere"]))
    with pytest.raises(UserError, match=r"data.selection.episodes: nowhere.txt"):
        select_episodes(index, SelectionConfig(episodes=["nowhere.txt"]))


def test_a_filter_that_leaves_nothing_is_named(reference_index):
    with pytest.raises(UserError, match="min_frames=1000"):
        select_episodes(reference_index, SelectionConfig(min_frames=1000))


@pytest.mark.parametrize("options", [{"outcome": "sucess"}, {"language": "some"}, {"idle": "dorp"}])
def test_unknown_options_are_refused(reference_index, options):
    with pytest.raises(UserError, match=next(iter(options))):
        select_episodes(reference_index, SelectionConfig(**options))


def split(index, rows, val_fraction):
    return [side.rows for side in split_sessions(index, Episodes(rows), val_fraction)]


def test_sessions_are_never_cut_and_stay_when_data_is_added():
    sessions = [f"lab/{day}" for day in range(200) for _ in range(3)]
    index, rows = TableIndex(session=sessions), np.arange(600)
    train, held_out = split(index, rows, 0.2)
    assert sorted([*train, *held_out]) == list(rows)
    assert not {sessions[r] for r in train} & {sessions[r] for r in held_out}
    assert 0.1 < len(held_out) / 600 < 0.3
    fewer = split(index, rows[:300], 0.2)[1]
    assert list(fewer) == [row for row in held_out if row < 300]


def test_one_of_a_few_sessions_is_held_out():
    index = TableIndex(session=["a", "a", "b", "c"])
    train, held_out = split(index, np.arange(4), 1e-9)
    assert len(held_out) and len(train)
    assert len(split(index, np.arange(4), 0)[1]) == 0
    one = TableIndex(session=["a", "a"])
    assert [list(side) for side in split(one, np.arange(2), 0.1)] == [[0, 1], []]
    with pytest.raises(UserError, match="must lie in"):
        split(index, np.arange(4), 1.5)
