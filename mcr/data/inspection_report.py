"""The report of an inspection, for the terminal."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pandas as pd

from mcr.data.index import Index
from mcr.data.inspection import Inspection
from mcr.data.inspection_signals import IDLE_SPEED, Dimension

SHORT = 40  # the paper leaves out episodes with fewer steps
DROID_ACTION = "cartesian_position + gripper_position"
_BINS = 40
_NEXT_LINE = "\n" + " " * 13  # under the text of the line before


def describe(found: Inspection) -> str:
    """Return the report: aligned lines, in a block per topic."""
    index, table = found.index, found.index.table
    frames = int(index.lengths.sum())
    facts = {
        "data set": f"{index.source} ({index.kind})",
        "index": str(index.path),
        "fingerprint": index.fingerprint,
        "size": f"{len(index):,} episodes, {frames:,} steps{_describe_time(index, frames)}",
        "cameras": _NEXT_LINE.join(_describe_cameras(index)),
        "disk": found.disk,
        "lengths": _describe_lengths(np.asarray(index.lengths)),
        "outcomes": _describe_counts(table["outcome"]),
        "labs": _describe_counts(table["lab"]),
        "sessions": _describe_counts(table["session"], top=4),
        "language": _describe_language(index),
        "action is": _describe_action(found.action_means),
        "idle": _describe_idle(found.idle),
    }
    lines = [f"{name:<12} {text}" for name, text in facts.items()]
    return "\n".join([*lines, "", *_describe_signals(found), "", *_describe_problems(found)])


def _describe_time(index: Index, frames: int) -> str:
    hz = index.schema.hz
    return f", {duration(frames / hz)} at {hz:g} Hz" if hz else ""


def _describe_cameras(index: Index) -> list[str]:
    """Describe each camera: the sizes of its frames, and how many episodes lack it."""
    lines = []
    for number, camera in enumerate(index.cameras):
        sizes = Counter(map(tuple, index.sizes[:, number].tolist()))
        lacking = sizes.pop((0, 0), 0)
        shown = [f"{height} x {width}" for (height, width), _ in sizes.most_common(3)]
        more = ", ..." if len(sizes) > 3 else ""
        text = f"{camera}: {', '.join(shown)}{more}"
        text += f"; {_share(lacking, len(index))} of the episodes lack it" if lacking else ""
        lines.append(text + ("" if camera in index.default_cameras else "; not used by default"))
    return lines


def _describe_lengths(lengths: np.ndarray) -> str:
    num_short = int((lengths < SHORT).sum())
    counts, _ = np.histogram(lengths, _BINS)
    return (
        f"{lengths.min()} .. {lengths.max()} steps, median {np.median(lengths):.0f}; "
        f"{_share(num_short, len(lengths))} shorter than {SHORT}{_NEXT_LINE}"
        f"{lengths.min()} |{_sparkline(counts)}| {lengths.max()}"
    )


def _sparkline(counts: np.ndarray) -> str:
    heights = np.ceil(8 * counts / counts.max()).astype(int)  # what is there is seen
    return "".join(" ▁▂▃▄▅▆▇█"[height] for height in heights)


def _describe_counts(values: pd.Series, top: int = 8) -> str:
    counts = values.replace("", "not stated").value_counts()
    if list(counts.index) == ["not stated"]:
        return "not stated"
    shown = [f"{name} {_share(n, len(values))}" for name, n in counts.head(top).items()]
    more = f", ... ({len(counts):,} in all)" if len(counts) > top else ""
    return ", ".join(shown) + more


def _describe_language(index: Index) -> str:
    table = index.table
    if not index.languages:
        return "no instructions"
    given = instructions_per_episode(index)
    texts = pd.concat([table[key] for key in index.languages])
    texts = texts[texts != ""]
    if texts.empty:
        return "no instructions"
    most, times = next(iter(texts.value_counts().items()))
    num = len(table)
    return (
        f"none {_share(int((given == 0).sum()), num)}, any {_share(int((given > 0).sum()), num)}, "
        f"all {len(index.languages)} {_share(int((given == len(index.languages)).sum()), num)}; "
        f"{texts.nunique():,} different{_NEXT_LINE}"
        f"words: {', '.join(typical_words(texts))}{_NEXT_LINE}"
        f"most common ({times:,} of {len(texts):,}): {str(most)!r}"
    )


def instructions_per_episode(index: Index) -> np.ndarray:
    """Return how many instructions each episode has: int64 [N], 0 .. 3."""
    return (index.table[list(index.languages)] != "").to_numpy().sum(axis=1)


_FILLERS = {"and", "for", "from", "into", "onto", "out", "that", "the", "then", "this", "with"}


def typical_words(texts: pd.Series, top: int = 12) -> list[str]:
    """Return the most frequent words that are no fillers, in lower case."""
    words = (word for text in texts for word in re.findall(r"[^\W\d_]{3,}", text.lower()))
    return [word for word, _ in Counter(w for w in words if w not in _FILLERS).most_common(top)]


def _describe_action(means: dict[str, tuple[float, float]]) -> str:
    if not means:
        return "unknown: no action_dict of its width to compare it with"
    nearest = next(iter(means))
    largest, share = means.get(DROID_ACTION, means[nearest])
    name = DROID_ACTION if DROID_ACTION in means else nearest
    if share == 0:
        return f"{name} of action_dict (largest difference {largest:.2g})"
    text = f"not {name} of action_dict: {share:.1%} of steps differ, by up to {largest:.3g}"
    return text if nearest == name else f"{text}{_NEXT_LINE}nearest to it: {nearest}"


def _describe_idle(idle: float | None) -> str:
    if idle is None:
        return "unknown: no joint_position"
    return f"{idle:.1%} of steps: no joint faster than {IDLE_SPEED} rad/s, and the gripper still"


def _describe_signals(found: Inspection) -> list[str]:
    """Describe each dimension of states and action. The other signals only get their remarks."""
    detailed = [d for d in found.dimensions if _is_detailed(d)]
    width = max((len(d.name) for d in detailed), default=0)
    numbers = ("min", "1%", "mean", "std", "99%", "max")
    lines = ["".join([f"{'signal':<{width}}", *(f"{name:>9}" for name in numbers)])]
    for d in detailed:
        values = (d.minimum, d.low, d.mean, d.std, d.high, d.maximum)
        cells = "".join(f"{value:9.3f}" for value in values)
        lines.append(f"{d.name:<{width}}{cells}  {', '.join(d.remarks)}".rstrip())
    rest = Counter(d.signal for d in found.dimensions if not _is_detailed(d))
    if rest:
        lines.append("also: " + ", ".join(f"{name} ({size})" for name, size in rest.items()))
    for d in found.dimensions:
        if d.remarks and not _is_detailed(d):
            lines.append(f"  {d.name}: {', '.join(d.remarks)}")
    if found.num_episodes < len(found.index):
        lines.append(
            f"over {found.num_steps:,} steps of {found.num_episodes:,} random episodes, "
            "whole ones; so are `action is` and `idle`"
        )
    return lines


def _is_detailed(dimension: Dimension) -> bool:
    return "/" not in dimension.signal and dimension.signal not in ("discount", "reward")


def _describe_problems(found: Inspection) -> list[str]:
    problems = found.index.info["problems"]
    lines = [f"left out of the index: {len(problems):,}" if problems else "left out: nothing"]
    lines += [f"  {problem}" for problem in problems[:10]]
    if len(problems) > 10:
        lines.append(f"  ... and {len(problems) - 10:,} more: see {found.index.path}/index.json")
    if found.unreadable:
        num_frames = sum(len(frames) for e in found.examples for frames in e.frames)
        lines.append(f"unreadable frames: {len(found.unreadable)} of {num_frames} tried")
        lines += [f"  {sentence}" for sentence in found.unreadable[:10]]
    return lines


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.0%})"


def duration(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} seconds"
