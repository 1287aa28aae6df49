"""LeRobot (https://github.com/huggingface/lerobot) with our encoders inside.

    lerobot-train --discover_packages_path=mcr.lerobot --policy.type=mcr_act \
        --policy.vision_backbone=my_encoder ...

The option imports this package, which registers the policies `mcr_act`, `mcr_diffusion` and
`mcr_vqbet` with LeRobot. They are LeRobot's own policies, whose pictures go through an encoder that
`mcr.load_model` reads. LeRobot's trainer, evaluation and files are used as they are. It copies
nothing of LeRobot. `compatibility` holds the one patch. The guide is docs/lerobot.md.
"""

from mcr.lerobot.act import MCRACTConfig, MCRACTPolicy
from mcr.lerobot.cached_features import CachedFeatures, make_dataset
from mcr.lerobot.compatibility import replace_make_dataset
from mcr.lerobot.diffusion import MCRDiffusionConfig, MCRDiffusionPolicy
from mcr.lerobot.vqbet import MCRVQBeTConfig, MCRVQBeTPolicy

__all__ = [
    "CachedFeatures",
    "MCRACTConfig",
    "MCRACTPolicy",
    "MCRDiffusionConfig",
    "MCRDiffusionPolicy",
    "MCRVQBeTConfig",
    "MCRVQBeTPolicy",
]

replace_make_dataset(make_dataset)
