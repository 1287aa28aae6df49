#!/usr/bin/env python
"""Train a policy by behaviour cloning on top of an encoder.

    python scripts/train_bc.py data=lift.hdf5 encoder=my_encoder
    python scripts/train_bc.py data=lift.hdf5 rgb_model_name=resnet18 pretrained_encoder=False
    python scripts/train_bc.py data=/data/droid_100/1.0.0 encoder=my_encoder fine_tune_epochs=20
    python scripts/train_bc.py --help

Options and defaults: cfgs/bc.yaml. The same command again continues an interrupted run.
"""

from mcr.policies.behaviour_cloning import main

if __name__ == "__main__":
    main()
