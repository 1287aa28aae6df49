"""Evaluation: frozen encoders -> success rates of policies in simulation.

For each task an expert's demonstrations, recorded once; for each encoder their features, on them
one policy per seed by behaviour cloning, and rollouts on the same scenes for all. Nothing is tuned
on the rollouts: the policy after the last epoch is tried, once. Called by `mcr evaluate`.

    <folder>/demonstrations/   <task>.hdf5, with masks for `evaluation.centricity`
             features/         <task>/<hash of the encoder>, caches
             fine_tuned/       <task>/<hash of the encoder>/<seed>, runs of encoders that learn
             results.csv ...   see `results`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange

from mcr.errors import UserError, require_choice
from mcr.evaluation.contestants import named_encoders, write_untrained_encoders
from mcr.evaluation.results import Results, success_rates, versions
from mcr.features.extraction import FeatureConfig, extract_features
from mcr.features.key import weights_fingerprint as fingerprint
from mcr.models.encoder import Encoder
from mcr.models.inference import torch_network
from mcr.models.loading import load_model
from mcr.policies.behaviour_cloning import train
from mcr.policies.config import Config as BehaviourCloning
from mcr.policies.demonstrations import (
    DemonstrationConfig,
    Demonstrations,
    open_demonstrations,
)
from mcr.policies.ensemble import EnsembleConfig, train_policies
from mcr.policies.network import PolicyConfig
from mcr.policies.observation_encoder import ObservationConfig
from mcr.policies.policy import load_policy
from mcr.runs.processes import processor
from mcr.simulation.recorder import record_demonstrations
from mcr.simulation.rollouts import Act, run_rollouts
from mcr.simulation.simulator import Observation, PictureConfig
from mcr.simulation.tasks import SUITES

PROPRIOCEPTION_ONLY = "proprioception only"
_SIMULATORS = 8  # at the same time: the encoder's batch


@dataclass(frozen=True)
class Protocol:
    """What all rows of a table have in common.

    demonstrations: per task
    noise:          of the expert's executed actions, see `recorder`
    rollouts:       per seed, on the scenes of seeds 0, 1, ...
    seeds:          policies per task and encoder
    pictures:       of demonstrations and rollouts
    horizon:        steps of a rollout; 0 = the task's
    """

    demonstrations: int = 25
    noise: float = 0.1
    rollouts: int = 20
    seeds: int = 3
    pictures: PictureConfig = field(default_factory=PictureConfig)
    horizon: int = 0
    policy: EnsembleConfig = field(default_factory=EnsembleConfig)

    def __post_init__(self) -> None:
        for name in ("demonstrations", "rollouts", "seeds"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True)
class Contestant:
    """A row of the table.

    source: what `load_model` reads; None = a policy that sees no pictures
    learns: the encoder learns with the policy, in the place of being frozen
    """

    name: str
    source: str | None
    learns: bool = False


def evaluate_in_simulation(
    encoders: Sequence[str],
    suite: str,
    tasks: Sequence[str],
    protocol: Protocol,
    folder: str | Path,
    from_scratch: bool = False,
    processes: int = 0,
    device: str = "cpu",
) -> str:
    """Measure encoders on a suite, and write results.csv, results.md, results.png to `folder`.

    An untrained encoder of each kind of network and a policy that sees no pictures are rows, too.

    encoders:     "NAME=SOURCE" or "SOURCE", what `load_model` reads
    suite:        a key of `SUITES`
    tasks:        names of its tasks, without the suite's; [] = all
    from_scratch: also a row for each untrained encoder that learns with its policy
    processes:    of simulators, 0 = one per core
    device:       of the encoder
    Returns the table of success rates in Markdown. Raises UserError as `evaluate`.
    """
    folder = Path(folder)
    names = SUITES[suite]
    chosen = [f"{suite}/{require_choice('task', task, names)}" for task in tasks or names]
    sources = named_encoders(encoders)
    untrained = write_untrained_encoders(sources.values(), folder / "untrained")
    contestants = [Contestant(*each) for each in [*sources.items(), *untrained.items()]]
    if from_scratch:
        contestants += [
            Contestant(name.replace("untrained", "from scratch"), source, learns=True)
            for name, source in untrained.items()
        ]
    contestants.append(Contestant(PROPRIOCEPTION_ONLY, None))
    results = evaluate(contestants, chosen, protocol, folder, processes, device)
    rows = results.rows[results.rows["task"].isin(chosen)]
    return results.write_report(success_rates(rows), percent=True)


def evaluate(
    contestants: Sequence[Contestant],
    tasks: Sequence[str],
    protocol: Protocol,
    folder: str | Path,
    processes: int = 0,
    device: str = "cpu",
) -> Results:
    """Measure what the folder's results lack, task by task; a row per seed.

    processes: of simulators, 0 = one per core. device: of the encoder.
    Raises UserError for tasks and encoders that are not there, for a folder with results of another
    protocol or of other weights under the same name.
    """
    folder = Path(folder)
    encoders = {c: load_model(c.source, device) if c.source else None for c in contestants}
    weights = {c: fingerprint(e) if e else "" for c, e in encoders.items()}
    results = Results(folder, asdict(protocol))
    for task in tasks:
        # UserError comes before the work
        missing = [c for c in contestants if not results.has(c.name, weights[c], task)]
        if not missing:
            continue
        path = _recorded(task, protocol, folder)
        demonstrations = open_demonstrations(DemonstrationConfig(str(path)))
        caches = folder / "features" / path.stem
        for contestant in missing:
            sight = Sight(contestant.source, encoders[contestant], weights[contestant])
            if contestant.learns:
                runs = folder / "fine_tuned" / path.stem / weights[contestant][:16]
                act = learning_policies(sight, path, runs, protocol, device)
            else:
                features = sight.of_demonstrations(demonstrations, path, caches, device)
                act = frozen_policies(sight, features, demonstrations, protocol, device)
            successes = try_policies(task, act, protocol, processes)
            about = _about(contestant, sight, task, demonstrations.cameras, protocol)
            rows = [
                {**about, "seed": str(seed), "successes": int(won.sum()), "trials": len(won)}
                for seed, won in enumerate(successes)
            ]
            results.add(rows)
            print(
                f"{task}: {contestant.name}: "
                + ", ".join(f"{row['successes']}/{row['trials']}" for row in rows),
                flush=True,
            )
    return results


def _recorded(task: str, protocol: Protocol, folder: Path) -> Path:
    """The task's demonstrations, recorded if they are not there yet."""
    path = folder / "demonstrations" / f"{task.replace('/', '_')}.hdf5"
    if not path.exists():
        record_demonstrations(
            task,
            path,
            count=protocol.demonstrations,
            noise=protocol.noise,
            masks=True,
            pictures=protocol.pictures,
        )
    return path


def _about(
    contestant: Contestant, sight: Sight, task: str, cameras: Sequence[str], protocol: Protocol
) -> dict[str, Any]:
    """What it takes to repeat a row."""
    return {
        "suite": task.partition("/")[0],
        "task": task,
        "encoder": contestant.name,
        "source": contestant.source or "",
        "weights": sight.weights,
        "preprocessing": sight.preprocessing,
        "cameras": " ".join(camera.removesuffix("_image") for camera in cameras),
        "picture_size": protocol.pictures.picture_size,
        "looks": protocol.pictures.looks,
        "demonstrations": protocol.demonstrations,
        "versions": versions(),
        "hardware": processor(),
    }


# --------------------------------------------------------------------------- one task, one encoder


class Sight:
    """What a policy sees of pictures: features of all cameras side by side, or nothing."""

    def __init__(self, source: str | None, encoder: Encoder | None, weights: str):
        self.source, self.encoder, self.weights = source, encoder, weights
        self._network = torch_network(encoder, "pooled", "fp32") if encoder else None

    @property
    def preprocessing(self) -> str:
        """For people: "resnet18, resize 256, crop 224, mean ..., std ..."."""
        if self.encoder is None:
            return ""
        config = self.encoder.preprocessing.encoder_config(self.encoder.backbone)
        return ", ".join(f"{key} {value}" for key, value in config.items())

    def of_demonstrations(
        self, demonstrations: Demonstrations, path: Path, folder: Path, device: str
    ) -> np.ndarray:
        """Features of all steps, float32 [N, V * D]; of the HDF5 `path`, by caches in `folder`."""
        if self.source is None:
            return np.zeros((len(demonstrations.actions), 0), np.float32)
        # The network of the rollouts, in this process: others would take longer to start.
        config = FeatureConfig(device=device, engine="torch", workers=1)
        cache = extract_features(self.source, path, folder / self.weights[:16], config)
        return rearrange(np.array(cache.array), "n v d -> n (v d)")

    def of_observation(self, observation: Observation) -> np.ndarray:
        """Features of B observations, float32 [B, V * D]."""
        if self.encoder is None or self._network is None:
            return np.zeros((len(observation["proprioception"]), 0), np.float32)
        cameras = sorted(key for key in observation if key.endswith("_image"))  # as in the cache
        pictures = np.stack([observation[key] for key in cameras], axis=1)
        pixels = self.encoder.preprocess(rearrange(pictures, "b v h w c -> (b v) h w c"))
        features = self._network(pixels).cpu().numpy()
        return rearrange(features, "(b v) d -> b (v d)", v=len(cameras))


def frozen_policies(
    sight: Sight,
    features: np.ndarray,
    demonstrations: Demonstrations,
    protocol: Protocol,
    device: str = "cpu",
) -> Act:
    """Train a policy per seed on frozen features: what their rollouts are decided by.

    features: of the demonstrations' steps, [N, V * D], as `sight` has them
    """
    config = protocol.policy
    if sight.source is None:
        config = replace(config, feature_norm="none")
    lengths, seeds = demonstrations.recordings.lengths, range(protocol.seeds)
    policies = train_policies(
        features, demonstrations.low_dim, demonstrations.actions, config, seeds, lengths, device
    )

    @torch.inference_mode()
    def act(chosen: np.ndarray, observation: Observation) -> np.ndarray:
        seen = sight.of_observation(observation)
        return policies.act(chosen, seen, observation["proprioception"])

    return act


def learning_policies(
    sight: Sight, demonstrations: Path, folder: Path, protocol: Protocol, device: str = "cpu"
) -> Act:
    """The same policies, but each with an encoder of its own that learns with it.

    The encoder begins with the weights of `sight`, learns at a tenth of the policy's rate, and
    sees random crops where its preprocessing crops at all. Runs are kept in `folder`.
    """
    assert sight.source is not None and sight.encoder is not None
    preprocessing = sight.encoder.preprocessing
    policy = asdict(protocol.policy)
    config = BehaviourCloning(
        demonstrations=DemonstrationConfig(data=str(demonstrations), val_fraction=0),
        observations=ObservationConfig(
            encoder=sight.source,
            freeze_encoder=False,
            crops=int(preprocessing.resize > preprocessing.image_size),
            feature_norm=policy.pop("feature_norm"),
            emb_dim=0,
        ),
        policy=PolicyConfig(**policy),
        device=device,
    )
    policies = [
        load_policy(train(replace(config, seed=seed, run_dir=str(folder / f"{seed}"))), device)
        for seed in range(protocol.seeds)
    ]

    def act(chosen: np.ndarray, observation: Observation) -> np.ndarray:
        actions = np.zeros((len(chosen), policies[0].network.action_dim), np.float32)
        for seed in np.unique(chosen):
            its = {key: values[chosen == seed] for key, values in observation.items()}
            actions[chosen == seed] = policies[seed].act(its, its["proprioception"])
        return actions

    return act


def try_policies(task: str, act: Act, protocol: Protocol, processes: int = 0) -> np.ndarray:
    """Rollouts of the policies, one per seed, that `act` asks: bool [seeds, rollouts]."""
    slots = [(seed, scene) for scene in range(protocol.rollouts) for seed in range(protocol.seeds)]
    successes = run_rollouts(
        task,
        act,
        slots,
        processes,
        simulators=_SIMULATORS,
        pictures=protocol.pictures,
        horizon=protocol.horizon,
    )
    return successes.reshape(protocol.rollouts, protocol.seeds).T
