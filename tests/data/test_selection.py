import numpy as np
import pandas as pd
import pytest

from mcr.data.index import open_index
from mcr.data.selection import SelectionConfig, select_episodes, split_sessions
from mcr.errors import UserError


class TableIndex:
    """What selection reads of an index: its table."""

    source = "somewhere"

    def __init__(self, **columns):
        self.table = pd.DataFrame(columns)


def test_filters_count_what_they_leave(shards):
    index = open_index(shards)
    rows, report = select_episodes(index, SelectionConfig(min_frames=40, language="all"))
    assert [index.table["length"][row] for row in rows] == [45, 41]
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
    assert list(select_episodes(index, SelectionConfig(language="any"))[0]) == [2, 3]
    assert list(select_episodes(index, SelectionConfig(language="any", min_words=1))[0]) == [
        1,
        2,
        3,
    ]
    assert list(select_episodes(index, SelectionConfig(language="all"))[0]) == [2]
    assert list(select_episodes(index, SelectionConfig(outcome="success"))[0]) == [0, 3]


def test_nothing_left_names_the_filter(shards):
    with pytest.raises(UserError, match="min_frames=1000"):
        select_episodes(open_index(shards), SelectionConfig(min_frames=1000))


@pytest.mark.parametrize("options", [{"outcome": "sucess"}, {"language": "some"}])
def test_unknown_options_are_refused(shards, options):
    with pytest.raises(UserError, match=next(iter(options))):
        select_episodes(open_index(shards), SelectionConfig(**options))


def test_sessions_are_never_cut_and_stay_when_data_is_added():
    sessions = [f"lab/{day}" for day in range(200) for _ in range(3)]
    index, rows = TableIndex(session=sessions), np.arange(600)
    train, held_out = split_sessions(index, rows, 0.2)
    assert sorted([*train, *held_out]) == list(rows)
    assert not {sessions[r] for r in train} & {sessions[r] for r in held_out}
    assert 0.1 < len(held_out) / 600 < 0.3
    fewer = split_sessions(index, rows[:300], 0.2)[1]
    assert list(fewer) == [row for row in held_out if row < 300]


def test_few_sessions_still_hold_one_out():
    index = TableIndex(session=["a", "a", "b", "c"])
    train, held_out = split_sessions(index, np.arange(4), 1e-9)
    assert len(held_out) and len(train)
    assert len(split_sessions(index, np.arange(4), 0)[1]) == 0
    with pytest.raises(UserError, match="val_fraction=0"):
        split_sessions(TableIndex(session=["a", "a"]), np.arange(2), 0.1)
    with pytest.raises(UserError, match="must lie in"):
        split_sessions(index, np.arange(4), 1.5)
