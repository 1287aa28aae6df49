import random

from mcr.data.episode import Origin, unique_names
from mcr.data.schema import load_schema

DROID = load_schema("droid").recording


def origin_of(path: str) -> Origin | None:
    try:
        return Origin.of(DROID, path, fallback="")
    except ValueError:
        return None


def names_of_paths(paths: list[str]) -> list[str]:
    return unique_names([origin_of(path) for path in paths])


def test_origin_of_a_droid_path(file_path):
    origin = origin_of(file_path(23))
    assert (origin.lab, origin.outcome, origin.date) == ("AUTOLab", "success", "2023-07-07")
    assert origin.name == "2023-07-07_Fri_Jul__7_09_42_23_2023"
    assert origin.session == "AUTOLab/2023-07-07"
    assert origin_of("2023-07-07/Fri/trajectory.h5").outcome == ""


def test_a_unique_name_stays_short(file_path):
    assert names_of_paths([file_path(1), file_path(2)]) == [
        "2023-07-07_Fri_Jul__7_09_42_01_2023",
        "2023-07-07_Fri_Jul__7_09_42_02_2023",
    ]


def test_episodes_of_the_same_second_get_their_lab_appended(file_path):
    names = names_of_paths([file_path(1, "AUTOLab"), file_path(2), file_path(1, "IRIS")])
    assert names == [
        "2023-07-07_Fri_Jul__7_09_42_01_2023_AUTOLab",
        "2023-07-07_Fri_Jul__7_09_42_02_2023",
        "2023-07-07_Fri_Jul__7_09_42_01_2023_IRIS",
    ]


def test_unusable_paths_have_no_name(file_path):
    assert names_of_paths(["../../x/t.h5", file_path(1), ""])[::2] == ["", ""]


def test_no_name_is_given_twice_whatever_the_paths():
    """The parts are such that an appended lab or counter may equal the name of another episode."""
    draw = random.Random(0)
    recordings = ["x", "X", "x_2", "x_3", "x_lab", "x_lab_2", "x:2"]
    labs = ["lab", "2", "no lab!", "L" * 300, ""]
    for _ in range(300):
        paths = [
            f"{draw.choice(labs)}/success/day/{draw.choice(recordings)}/t.h5"
            for _ in range(draw.randint(1, 12))
        ]
        names = names_of_paths(paths)
        assert len({name.casefold() for name in names}) == len(paths)
        assert all(len(name) < 250 for name in names)
        for name, path in zip(names, paths, strict=True):
            assert name.startswith(origin_of(path).name)
