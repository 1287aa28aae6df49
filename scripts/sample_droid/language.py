"""Instructions: three paraphrases of what the robot is asked to do, as DROID's annotators write."""

from __future__ import annotations

import numpy as np

_ENGLISH = {
    "lift": (
        "Pick up the {a}",
        "Lift the {a} off the table",
        "Grasp the {a} and raise it",
        "Take the {a} and hold it in the air",
        "Raise the {a} above the table",
    ),
    "stack": (
        "Put the {a} on the {b}",
        "Stack the {a} on top of the {b}",
        "Place the {a} on the {b}",
        "Pick up the {a} and set it on the {b}",
        "Move the {a} onto the {b}",
    ),
    "place": (
        "Put the {a} in the {b}",
        "Drop the {a} into the {b}",
        "Pick up the {a} and place it inside the {b}",
        "Move the {a} from the table into the {b}",
        "Take the {a} and leave it in the {b}",
    ),
}
_FRENCH = {
    "lift": ("Soulève {a}", "Lève {a} au-dessus de la table", "Prends {a} et garde l’objet levé"),
    "stack": ("Empile délicatement {a} sur {b}", "Pose {a} là, sur {b}", "Déplace {a} sur {b}"),
    "place": ("Dépose {a} dans {b}", "Déplace {a} vers {b}", "Range {a} à sa place, dans {b}"),
}
_ONE_WORD = {
    "lift": ("Lift", "Grasp", "Raise"),
    "stack": ("Stack", "Pile", "Build"),
    "place": ("Place", "Store", "Sort"),
}
_FRENCH_SHAPES = {  # with article, and whether feminine
    "cube": ("le cube", False),
    "block": ("le bloc", False),
    "can": ("la canette", True),
    "box": ("la boîte", True),
}
_FRENCH_COLOURS = {  # masculine, feminine
    "red": ("rouge", "rouge"),
    "green": ("vert", "verte"),
    "blue": ("bleu", "bleue"),
    "yellow": ("jaune", "jaune"),
    "orange": ("orange", "orange"),
    "purple": ("violet", "violette"),
    "white": ("blanc", "blanche"),
    "black": ("noir", "noire"),
}


def instructions(
    task: str, names: list[tuple[str, str]], oddity: str, rng: np.random.Generator
) -> list[str]:
    """Three different instructions.

    names:  (colour, shape) of the object to move and, if there is one, of its destination
    oddity: that of the episode's plan
    """
    if oddity == "no_language":
        return ["", "", ""]
    if oddity == "one_word":
        return list(_ONE_WORD[task])
    french = oddity == "non_ascii"
    templates = (_FRENCH if french else _ENGLISH)[task]
    spoken = [_in_french(*name) if french else " ".join(name) for name in names]
    words = dict(zip("ab", spoken, strict=False))
    return [templates[i].format(**words) for i in rng.permutation(len(templates))[:3]]


def _in_french(colour: str, shape: str) -> str:
    noun, feminine = _FRENCH_SHAPES[shape]
    return f"{noun} {_FRENCH_COLOURS[colour][feminine]}"
