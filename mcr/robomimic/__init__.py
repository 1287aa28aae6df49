"""robomimic (https://robomimic.github.io) with our encoders inside.

    import mcr.robomimic  # from here on robomimic knows MCRConv, R3MConv, MVPConv, ...

That line is all: robomimic's configs, algorithms and scripts are used as they are. What else lies
here: demonstrations to try it on, its simulator made to run, features computed once, and a
comparison. Nothing of robomimic is copied; the little that is patched is in `compatibility`.
docs/robomimic.md is the guide.
"""

from mcr.robomimic.compatibility import register
from mcr.robomimic.encoders import EncoderConv, MCRConv, MVPConv, R3MConv

__all__ = ["EncoderConv", "MCRConv", "MVPConv", "R3MConv"]


def _simulator() -> type:
    """The class, imported when robomimic asks for it: most who use encoders need no simulator."""
    from mcr.robomimic.simulator import RobosuiteSimulator

    return RobosuiteSimulator


register(EncoderConv, MCRConv, R3MConv, MVPConv, simulator=_simulator)
