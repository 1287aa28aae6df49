"""Campaigns of hostile files, which `benchmarks/attack.py` runs.

A campaign is a subclass of `attacks.campaign.Campaign` in a module here, and a line in `CAMPAIGNS`.
"""

from __future__ import annotations

from attacks.campaign import Campaign
from attacks.hdf5 import Hdf5
from attacks.lerobot import LerobotV2, LerobotV3
from attacks.media import Pictures, Videos
from attacks.pickles import Pickles
from attacks.pngs_and_jpegs import PngsAndJpegs
from attacks.rlds import Rlds
from attacks.trees import Trees
from attacks.weights import UncheckedWeights, Weights

CAMPAIGNS: dict[str, type[Campaign]] = {
    "pickle": Pickles,
    "picture": PngsAndJpegs,
    "tree": Trees,
    "rlds": Rlds,
    "lerobot-v2": LerobotV2,
    "lerobot-v3": LerobotV3,
    "hdf5": Hdf5,
    "videos": Videos,
    "pictures": Pictures,
    "weights": Weights,
    "weights-unchecked": UncheckedWeights,
}
