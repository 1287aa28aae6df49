"""The appearance of a scene and its objects: everything that is random in it, as plain data.

A lab has a table, walls and tripods. A session, one lab on one day, has a light and slightly
different camera poses. Each episode moves the light and the cameras a little and draws its own
objects. `scene.py` builds the physics from this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLOURS = {
    "red": (0.80, 0.12, 0.10),
    "green": (0.13, 0.58, 0.20),
    "blue": (0.10, 0.28, 0.75),
    "yellow": (0.92, 0.78, 0.12),
    "orange": (0.93, 0.45, 0.08),
    "purple": (0.45, 0.18, 0.60),
    "white": (0.92, 0.92, 0.90),
    "black": (0.09, 0.09, 0.10),
}
TEXTURES = ("ceramic", "light-gray-plaster", "light-wood", "cream-plaster")  # robosuite's
TABLE_HEIGHT = 0.8  # metres; the world's origin lies on the floor below the table's centre
REACH_X = (-0.14, 0.10)  # where objects stand; the robot's base is at x = -0.56
REACH_Y = (-0.20, 0.20)


@dataclass(frozen=True)
class Thing:
    """An object: half sizes in metres (radius, radius, half height of a can), position, angle."""

    shape: str  # "cube", "block", "can" or "box", which is open at the top
    colour: str
    half_size: tuple[float, float, float]
    xy: tuple[float, float]
    yaw: float


@dataclass(frozen=True)
class Camera:
    position: tuple[float, float, float]
    target: tuple[float, float, float]
    fovy: float  # vertical, degrees


@dataclass(frozen=True)
class Look:
    """The appearance of a scene. Colours are RGB factors on the textures, 0..1."""

    table_texture: str
    table_tint: tuple[float, float, float]
    floor_texture: str
    wall_colour: tuple[float, float, float]
    light_position: tuple[float, float, float]
    light_strength: float
    ambient: float
    cameras: tuple[Camera, Camera]


@dataclass(frozen=True)
class Style:
    """How pictures are taken.

    quality: of the JPEG files, 1..100
    draft:   no shadows and no smooth edges, which take most of the time on a CPU
    """

    quality: int = 55
    draft: bool = False


def draw_look(
    lab_rng: np.random.Generator, session_rng: np.random.Generator, rng: np.random.Generator
) -> Look:
    """Draw a lab's furniture and the variation of a session and an episode."""
    tint = lab_rng.uniform(0.6, 0.95, size=3)
    wall = lab_rng.uniform(0.55, 0.95) * lab_rng.uniform(0.88, 1.0, size=3)
    texture, floor = str(lab_rng.choice(TEXTURES)), str(lab_rng.choice(TEXTURES[:2]))
    angle = session_rng.uniform(-np.pi, np.pi)
    light = np.array([0.9 * np.cos(angle), 0.9 * np.sin(angle), session_rng.uniform(2.0, 2.6)])
    return Look(
        table_texture=texture,
        table_tint=_triple(tint),
        floor_texture=floor,
        wall_colour=_triple(wall),
        light_position=_triple(light + rng.normal(0, 0.15, size=3)),
        light_strength=float(session_rng.uniform(0.45, 0.65) * rng.uniform(0.85, 1.15)),
        ambient=float(session_rng.uniform(0.22, 0.35)),
        cameras=(
            _draw_camera(lab_rng, session_rng, rng, side=1),
            _draw_camera(lab_rng, session_rng, rng, side=-1),
        ),
    )


def _draw_camera(
    lab_rng: np.random.Generator,
    session_rng: np.random.Generator,
    rng: np.random.Generator,
    side: int,
) -> Camera:
    """Draw a camera to the robot's left (side 1) or right (-1), aimed at the table's middle."""
    moved = session_rng.normal(0, [np.radians(4), 0.03, 0.03]) + rng.normal(
        0, [np.radians(3), 0.03, 0.03]
    )
    azimuth = side * np.radians(lab_rng.uniform(35, 80)) + moved[0]
    distance = lab_rng.uniform(0.75, 0.95) + moved[1]
    height = lab_rng.uniform(0.35, 0.65) + moved[2]
    centre = np.array([-0.10, 0.0, TABLE_HEIGHT + 0.10])
    offset = [distance * np.cos(azimuth), distance * np.sin(azimuth), height]
    return Camera(
        position=_triple(centre + offset),
        target=_triple(centre + rng.normal(0, 0.02, size=3)),
        fovy=float(lab_rng.uniform(40, 52)),
    )


def draw_things(task: str, rng: np.random.Generator) -> tuple[Thing, ...]:
    """Draw the object to move, its destination if there is one, and up to two distractors."""
    shapes = {
        "lift": [str(rng.choice(["cube", "block", "can"]))],
        "stack": ["cube", "block" if rng.random() < 0.3 else "cube"],
        "place": [str(rng.choice(["cube", "block", "can"])), "box"],
    }[task]
    shapes += rng.choice(["cube", "block", "can"], size=rng.integers(0, 3)).tolist()
    colours = rng.permutation(list(COLOURS)).tolist()[: len(shapes)]
    places = _draw_places([0.11 if shape == "box" else 0.035 for shape in shapes], rng)
    return tuple(
        Thing(shape, colour, _draw_size(shape, rng), xy, float(rng.uniform(-np.pi, np.pi)))
        for shape, colour, xy in zip(shapes, colours, places, strict=True)
    )


def _draw_size(shape: str, rng: np.random.Generator) -> tuple[float, float, float]:
    """Draw half sizes that fit between the fingers, which open to 8 cm. A block stands upright."""
    if shape == "box":
        return _triple([rng.uniform(0.075, 0.09)] * 2 + [rng.uniform(0.025, 0.035)])
    width = rng.uniform(0.019, 0.026)
    height = {"cube": width, "block": rng.uniform(0.03, 0.04), "can": rng.uniform(0.035, 0.05)}
    return _triple([width, width, height[shape]])


def _draw_places(radii: list[float], rng: np.random.Generator) -> list[tuple[float, float]]:
    """Draw positions at which open fingers can reach each object without touching another."""
    clearance = 0.05
    while True:
        xy = np.stack([rng.uniform(*REACH_X, len(radii)), rng.uniform(*REACH_Y, len(radii))], 1)
        gaps = np.linalg.norm(xy[:, None] - xy[None], axis=2) - np.add.outer(radii, radii)
        if (gaps + np.eye(len(radii)) > clearance).all():
            return [(float(x), float(y)) for x, y in xy]


def _triple(values: np.ndarray | list[float]) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z
