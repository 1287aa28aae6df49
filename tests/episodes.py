"""Reads RLDS episodes without the index, for tests that compare with them or write them."""

from collections.abc import Callable, Iterator
from pathlib import Path

from mcr.data.episode import Episode
from mcr.data.schema import LANGUAGES
from mcr.data.sources.rlds import RldsSource
from mcr.data.tree_writing import write_episode_folder

EXTERIOR_CAMERAS = ("exterior_image_1_left", "exterior_image_2_left")


def read_episodes(root: Path) -> list[Episode]:
    """All episodes of an RLDS data set in file order, none of which may be damaged."""
    episodes = [e for part in RldsSource(root).parts() for e in part.episodes()]
    assert not any(isinstance(episode, str) for episode in episodes), episodes
    return episodes


def write_folder(
    root: Path,
    name: str,
    episode: Episode,
    cameras: tuple[str, ...],
    encode: Callable[[memoryview], bytes],
    suffix: str,
) -> None:
    """Write an RLDS episode to the tree `root` with these cameras."""

    def frames(camera: str) -> Iterator[bytes]:
        for step in range(episode.length):
            yield encode(episode.encoded_frame(camera, step))

    pictures = {camera: frames(camera) for camera in cameras}
    texts = dict(zip(LANGUAGES, episode.texts, strict=True))
    write_episode_folder(root, name, pictures, suffix, texts, episode.signals, episode.origin)
