"""Rules of cleaning: facts about an episode -> why it is rejected, or None.

**A new rule is one function, added to `RULES`.** A rule may compare an episode with what most
episodes of the tree are like (`Expected`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar

from mcr.data.clean_facts import Facts, show_size

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True)
class Expected:
    """What an episode should be like: the thresholds, and what most episodes of the tree are like.

    cameras: names of the cameras
    sizes:   (height, width) of each camera
    widths:  numbers in a row of each signal
    keys:    signals that at least half of the episodes have
    """

    min_frames: int
    min_words: int
    cameras: tuple[str, ...]
    sizes: dict[str, tuple[int, int]]
    widths: dict[str, int]
    keys: tuple[str, ...]


def expect(
    facts: list[Facts], min_frames: int, min_words: int, cameras: tuple[str, ...] | None
) -> Expected:
    """Return the thresholds together with what most episodes are like.

    cameras: the cameras to expect; None = those of most episodes
    """
    sizes: dict[str, list[tuple[int, int]]] = {}
    widths: dict[str, list[int]] = {}
    for f in facts:
        for name, camera in f.cameras.items():
            sizes.setdefault(name, []).extend([camera.size] if camera.size else [])
        for key, width in f.widths.items():
            widths.setdefault(key, []).extend([width] if width is not None else [])
    readable = [f for f in facts if not f.unreadable]
    counts = Counter(key for f in readable for key in f.lengths)
    usual_cameras = [tuple(f.cameras) for f in facts if f.cameras]
    return Expected(
        min_frames=min_frames,
        min_words=min_words,
        cameras=cameras or (_most_common(usual_cameras) if usual_cameras else ()),
        sizes={name: _most_common(found) for name, found in sizes.items() if found},
        widths={key: _most_common(found) for key, found in widths.items() if found},
        keys=tuple(key for key, times in counts.items() if 2 * times >= len(readable)),
    )


def _most_common(values: list[T]) -> T:
    return Counter(values).most_common(1)[0][0]


def missing_camera(facts: Facts, expected: Expected) -> str | None:
    missing = sorted(set(expected.cameras) - set(facts.cameras))
    return f"no {', '.join(missing)}" if missing else None


def extra_camera(facts: Facts, expected: Expected) -> str | None:
    extra = sorted(set(facts.cameras) - set(expected.cameras))
    return f"also {', '.join(extra)}" if extra else None


def unequal_cameras(facts: Facts, expected: Expected) -> str | None:
    counts = {name: camera.num_frames for name, camera in facts.cameras.items()}
    if len(set(counts.values())) <= 1:
        return None
    return ", ".join(f"{name} has {count} frames" for name, count in counts.items())


def missing_frames(facts: Facts, expected: Expected) -> str | None:
    gaps = [f"{name}: {camera.gap}" for name, camera in facts.cameras.items() if camera.gap]
    return "; ".join(gaps) or None


def damaged_picture(facts: Facts, expected: Expected) -> str | None:
    damages = [
        f"{name}: {camera.damage}" for name, camera in facts.cameras.items() if camera.damage
    ]
    return "; ".join(damages) or None


def wrong_picture_size(facts: Facts, expected: Expected) -> str | None:
    """A whole camera has another size than in most episodes. See also `damaged_picture`."""
    for name, camera in facts.cameras.items():
        usual = expected.sizes.get(name)
        if camera.size and usual and camera.size != usual:
            return f"{name} is {show_size(camera.size)}, {show_size(usual)} in most episodes"
    return None


def unreadable_data(facts: Facts, expected: Expected) -> str | None:
    return facts.unreadable or None


def missing_keys(facts: Facts, expected: Expected) -> str | None:
    """Training uses the signals that most episodes have. Which ones is up to the robot."""
    # Upstream: asks for DROID's signals, which other robots do not have.
    missing = [key for key in expected.keys if key not in facts.lengths]
    return f"no {', '.join(missing)}" if missing and not facts.unreadable else None


def wrong_length(facts: Facts, expected: Expected) -> str | None:
    # Upstream: never compared.
    longest = max((camera.num_frames for camera in facts.cameras.values()), default=0)
    wrong = [f"{key} {n}" for key, n in facts.lengths.items() if n != longest]
    return f"rows for {longest} frames: {', '.join(wrong)}" if wrong else None


def wrong_dimensions(facts: Facts, expected: Expected) -> str | None:
    for key, width in facts.widths.items():
        if width is None:
            return f"{key}: rows of different sizes, or no numbers"
        if width != expected.widths.get(key, width):
            return f"{key} has {width} numbers a row, {expected.widths[key]} in most episodes"
    return None


def not_finite(facts: Facts, expected: Expected) -> str | None:
    return f"NaN or infinite: {', '.join(facts.not_finite)}" if facts.not_finite else None


def too_short(facts: Facts, expected: Expected) -> str | None:
    frames = facts.num_frames
    return f"{frames} frames of {expected.min_frames}" if frames < expected.min_frames else None


def short_instruction(facts: Facts, expected: Expected) -> str | None:
    """The longest of up to three instructions has too few words."""
    # Upstream: all three must exist and have two words, which halves the data. No loss reads them,
    # so the default of `min_words` is 0, which rejects nothing.
    words = max((len(text.split()) for text in facts.instructions), default=0)
    return f"{words} words of {expected.min_words}" if words < expected.min_words else None


Rule = Callable[[Facts, Expected], str | None]
RULES: tuple[Rule, ...] = (
    missing_camera,
    extra_camera,
    unequal_cameras,
    missing_frames,
    damaged_picture,
    wrong_picture_size,
    unreadable_data,
    missing_keys,
    wrong_length,
    wrong_dimensions,
    not_finite,
    too_short,
    short_instruction,
)
