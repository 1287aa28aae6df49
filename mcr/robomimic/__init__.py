"""robomimic (https://robomimic.github.io) with our encoders inside.

    import mcr.robomimic  # from here on robomimic knows MCRConv, R3MConv, MVPConv, ...

This line is all that is needed: robomimic's configs, algorithms and scripts are used as they are.
This package also records demonstrations to try it on, makes robomimic's simulator run, computes
features once, and compares encoders. It copies nothing of robomimic. `compatibility` holds the few
patches. The guide is docs/robomimic.md.
"""

from mcr.robomimic.compatibility import register
from mcr.robomimic.encoders import EncoderConv, MCRConv, MVPConv, R3MConv

__all__ = ["EncoderConv", "MCRConv", "MVPConv", "R3MConv"]


def _simulator() -> type:
    """The class, imported when robomimic asks for it: most users of encoders need no simulator."""
    from mcr.robomimic.simulator import RobosuiteSimulator

    return RobosuiteSimulator


register(EncoderConv, MCRConv, R3MConv, MVPConv, simulator=_simulator)
