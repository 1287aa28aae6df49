"""robomimic (https://robomimic.github.io) with our encoders inside.

    import mcr.downstream.robomimic  # from here on robomimic knows MCRConv, R3MConv, MVPConv, ...

That line is all: robomimic's configs, algorithms and scripts are used as they are. What else lies
here: demonstrations to try it on, its simulator made to run, features computed once, and a
comparison. Nothing of robomimic is copied; the little that is patched is in `compatibility`.
docs/robomimic.md is the guide.
"""

from mcr.downstream.robomimic.compatibility import register
from mcr.downstream.robomimic.encoders import EncoderConv, MCRConv, MVPConv, R3MConv

__all__ = ["EncoderConv", "MCRConv", "MVPConv", "R3MConv"]

register(EncoderConv, MCRConv, R3MConv, MVPConv)
