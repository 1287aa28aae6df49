"""Media: folders of videos with tables, and folders of pictures with tables."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pandas as pd

from attacks.damages import EXTREMES, write
from attacks.data_sets import DataSet, short_episodes
from attacks.parquet import damage_parquet
from mcr.data.pictures import encode_png
from tests.data.formats import write_media
from tests.write_video import write_video


class _Media(DataSet):
    def damage_structure(self, path: Path, draw: random.Random) -> str:
        if path.suffix == ".parquet":
            return damage_parquet(path, draw)
        if path.suffix != ".csv":
            return ""
        rows = [line.split(",") for line in path.read_text("latin-1").splitlines()]
        row = draw.choice(rows)
        value = draw.choice([str(v).encode("utf-8", "replace").decode() for v in EXTREMES])
        row[draw.randrange(len(row))] = value
        write(path, "\n".join(",".join(row) for row in rows).encode())
        return f"{path.name}: {value[:40]}"


class Videos(_Media):
    """Two episodes of ffv1 in Matroska, and two of H.264 in MP4 and MPEG-4 in AVI."""

    def sound(self, folder: Path) -> None:
        write_media(folder, short_episodes()[:2]).rename(folder / "data")
        write_video(folder / "data/plain.mp4", 6, fps=10)
        write_video(folder / "data/old.avi", 6, fps=10, codec="mpeg4")


class Pictures(_Media):
    """A folder of pictures per episode, with a table beside it."""

    def sound(self, folder: Path) -> None:
        for number, episode in enumerate(short_episodes()):
            place = folder / "data" / f"run_{number}"
            place.mkdir(parents=True)
            for step, frame in enumerate(episode.frames["front"]):
                (place / f"{step}.png").write_bytes(encode_png(np.ascontiguousarray(frame)))
                (place / f"{step}.png").with_suffix(".png")
            table = pd.DataFrame({f"state_{i}": episode.state[:, i] for i in range(3)})
            table["text"] = episode.text
            if number % 2:
                table.to_csv(place.with_suffix(".csv"), index=False)
            else:
                table.to_parquet(place.with_suffix(".parquet"))
