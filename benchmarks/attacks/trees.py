"""Trees: damaged files, odd episodes, odd names. They are indexed, read and judged by cleaning."""

from __future__ import annotations

import pickle
import random
import shutil
from pathlib import Path

from attacks.damages import change_value
from attacks.data_sets import DataSet, short_episodes
from attacks.pickles import Pickles
from mcr.data.clean_facts import inspect_episode
from mcr.data.clean_rules import RULES, expect
from mcr.data.other_data import OTHER_DATA, read_other_data
from tests.data.formats import write_tree

NAMES = ("1700000000.png", "0000000000000000003.png", "9999999999999.png", "1.5.png", "a.png")


class Trees(DataSet):
    def sound(self, folder: Path) -> None:
        write_tree(folder, short_episodes()).rename(folder / "data")
        (folder / "pickles").mkdir()
        Pickles().sound(folder / "pickles")

    def damage_structure(self, path: Path, draw: random.Random) -> str:
        if path.name == OTHER_DATA:
            if draw.random() < 0.5:
                what = Pickles().damage(path.parents[2] / "pickles", draw)
                shutil.copyfile(path.parents[2] / "pickles" / OTHER_DATA, path.with_name("new"))
            else:
                data = read_other_data(path)
                what = change_value(data, draw)
                path.with_name("new").write_bytes(pickle.dumps(data))
            path.with_name("new").replace(path)
            return f"{OTHER_DATA}: {what}"
        if path.suffix != ".png":
            return ""
        name = draw.choice(NAMES)
        path.rename(path.with_name(name))
        return f"{path.name} is {name}"

    def read(self, folder: Path) -> None:
        folders = sorted(path for path in (folder / "data").iterdir() if path.is_dir())
        facts = [inspect_episode(path) for path in folders]
        expected = expect(facts, 3, 0, None)
        for fact in facts:
            for rule in RULES:
                rule(fact, expected)
        super().read(folder)
