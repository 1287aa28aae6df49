"""Evaluation in simulation: success rates of policies that use frozen encoders.

For each task, an expert's demonstrations are recorded once. For each encoder, their features are
computed, one policy per seed is trained on them by behaviour cloning, and its rollouts start from
the same scenes as all others. Nothing is tuned on rollouts: only the policy after the last epoch is
evaluated, once. Called by `mcr evaluate`.

    <folder>/demonstrations/   <task>.hdf5, with masks for `evaluation.centricity`
             features/         <task>/<hash of the encoder>, caches
             fine_tuned/       <task>/<hash of the encoder>/<seed>, runs of encoders that learn
             results.csv ...   see `results`
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange

from mcr.errors import UserError, require_choice
from mcr.evaluation.contestants import (
    PROPRIOCEPTION_ONLY,
    WITHOUT_PROPRIOCEPTION,
    identity,
    with_yardsticks,
)
from mcr.evaluation.results import POOLED, Results, success_rates, versions
from mcr.evaluation.task_sets import TASK_SETS, TaskSetting, set_of_task
from mcr.features.extraction import FeatureConfig, extract_features
from mcr.models.encoder import Encoder
from mcr.models.fingerprint import encoder_fingerprint
from mcr.models.inference import Network, fastest_engine, torch_network
from mcr.models.loading import load_model
from mcr.models.onnx_file import onnx_network, write_network
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

# What a policy sees of an encoder, and the encoder's output: one vector for each camera, or the
# last feature map, over whose tokens the policy learns an attention.
POLICIES = {POOLED: "pooled", "tokens": "spatial"}
_SIMULATORS = 8  # that run at the same time; the encoder's batch size


@dataclass(frozen=True)
class Protocol:
    """The settings that all rows of a table share.

    demonstrations: number of demonstrations for each task
    noise:          on the expert's executed actions, see `recorder`
    rollouts:       number of rollouts for each seed, on the scenes of seeds 0, 1, ...
    seeds:          number of policies for each task and encoder
    pictures:       how pictures of demonstrations and rollouts are taken
    horizon:        steps of a rollout; 0 = the task's own
    settings:       of tasks that have their own demonstrations and horizon
    """

    demonstrations: int = 25
    noise: float = 0.1
    rollouts: int = 20
    seeds: int = 3
    pictures: PictureConfig = field(default_factory=PictureConfig)
    horizon: int = 0
    policy: EnsembleConfig = field(default_factory=EnsembleConfig)
    settings: Mapping[str, TaskSetting] = field(default_factory=dict)

    def of_task(self, task: str) -> Protocol:
        """The protocol of one task."""
        own = asdict(self.settings[task]) if task in self.settings else {}
        return replace(self, settings={}, **own)

    def description(self) -> dict[str, Any]:
        """What rows of one folder must share, for protocol.json."""
        described = asdict(self)
        if not self.settings:
            del described["settings"]  # earlier versions had none
        return described

    def __post_init__(self) -> None:
        for name in ("demonstrations", "rollouts", "seeds"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.pictures.picture_size:
            raise UserError("picture_size=0 means no pictures, but encoders need some")


@dataclass(frozen=True)
class Contestant:
    """An encoder to evaluate: a row of the table.

    source: what `load_model` reads; None = a policy that sees no pictures
    learns: whether the encoder is trained together with the policy instead of frozen; one with
            random weights then has the policy's learning rate and live batch statistics
    policy: a key of `POLICIES`; "" without pictures
    proprioception: whether the policy sees proprioception too
    """

    name: str
    source: str | None
    learns: bool = False
    policy: str = POOLED
    proprioception: bool = True

    @property
    def title(self) -> str:
        """The name, with the policy if it is not the usual one; as in the table."""
        return self.name if self.policy in ("", POOLED) else f"{self.name}, {self.policy}"


def evaluate_in_simulation(
    encoders: Sequence[str],
    suite: str,
    tasks: Sequence[str],
    protocol: Protocol,
    folder: str | Path,
    from_scratch: bool = False,
    processes: int = 0,
    device: str = "cpu",
    policies: Sequence[str] = (POOLED,),
    without_proprioception: bool = False,
) -> str:
    """Evaluate encoders on a suite, and write results.csv, results.md, results.png to `folder`.

    There are also rows for an untrained encoder of each kind of network, for ImageNet features and
    for a policy that sees no pictures. Rows of encoders called NAME/seed0, NAME/seed1, ... are
    pretraining seeds of one recipe; the table has one row for all of them.

    encoders:     "NAME=SOURCE" or "SOURCE", what `load_model` reads
    suite:        a key of `SUITES`, or of `TASK_SETS`, whose tasks have their own demonstrations
                  and horizons, and varied looks, whatever `protocol` says
    tasks:        names of its tasks, without the suite's; [] = all
    from_scratch: add rows of untrained encoders that are trained together with their policies
    processes:    number of processes for simulators, 0 = one per core
    device:       where the encoder runs
    policies:     keys of `POLICIES`; a frozen encoder has rows for each
    without_proprioception: add a row for each frozen encoder whose policy sees pictures alone
    Returns the table of success rates in Markdown. Raises UserError as `evaluate`.
    """
    folder = Path(folder)
    chosen = _tasks_of_suite(suite, tasks)
    if suite in TASK_SETS:
        pictures = replace(protocol.pictures, looks="varied")
        protocol = replace(protocol, pictures=pictures, settings=TASK_SETS[suite])
    sources, untrained = with_yardsticks(encoders, folder / "untrained")
    contestants = [
        Contestant(name, source, policy=require_choice("policy", policy, POLICIES))
        for name, source in sources.items()
        for policy in policies
    ]
    if without_proprioception:
        contestants += [
            replace(each, name=f"{each.name} {WITHOUT_PROPRIOCEPTION}", proprioception=False)
            for each in contestants
        ]
    if from_scratch:
        contestants += [
            Contestant(name.replace("untrained", "from scratch"), sources[name], learns=True)
            for name in untrained
        ]
    contestants.append(Contestant(PROPRIOCEPTION_ONLY, None, policy=""))
    results = evaluate(contestants, chosen, protocol, folder, processes, device)
    rows = results.rows[results.rows["task"].isin(chosen)]
    return results.write_report(success_rates(rows), percent=True)


def _tasks_of_suite(suite: str, chosen: Sequence[str]) -> list[str]:
    """The tasks, all if none is chosen. Raises UserError for a name that the suite lacks."""
    if suite in TASK_SETS:
        tasks = [*TASK_SETS[suite]]
    else:
        tasks = [f"{suite}/{name}" for name in SUITES[suite]]
    by_name = {task.partition("/")[2]: task for task in tasks}
    return [by_name[require_choice("task", name, by_name)] for name in chosen] or tasks


def evaluate(
    contestants: Sequence[Contestant],
    tasks: Sequence[str],
    protocol: Protocol,
    folder: str | Path,
    processes: int = 0,
    device: str = "cpu",
) -> Results:
    """Measure what is missing in the folder's results, task by task, with a row per seed.

    processes, device: as for `evaluate_in_simulation`
    Raises UserError for unknown tasks and encoders, and for a folder whose results have another
    protocol or, under the same name, other weights.
    """
    folder = Path(folder)
    encoders = {c: load_model(c.source, device) if c.source else None for c in contestants}
    identities = {c: identity(e, c.learns) for c, e in encoders.items()}
    results = Results(folder, protocol.description())
    for task in tasks:
        missing = [c for c in contestants if not results.has(c.name, identities[c], task, c.policy)]
        if not missing:
            continue
        of_task = protocol.of_task(task)
        path = _recorded(task, of_task, folder)
        demonstrations = open_demonstrations(DemonstrationConfig(str(path)))
        caches = folder / "features" / path.stem
        for contestant in missing:
            output = POLICIES.get(contestant.policy, "pooled")
            encoder = encoders[contestant]
            picture_features = PictureFeatures(contestant.source, encoder, output, device)
            if contestant.learns:
                runs = folder / "fine_tuned" / path.stem / picture_features.key
                act = learning_policies(picture_features, path, runs, of_task, device)
            else:
                seen = demonstrations
                if not contestant.proprioception:
                    seen = replace(demonstrations, low_dim=demonstrations.low_dim[:, :0])
                features = picture_features.of_demonstrations(seen, path, caches)
                act = frozen_policies(picture_features, features, seen, of_task, device)
            successes = try_policies(task, act, of_task, processes, blind=encoder is None)
            about = _about(contestant, task, demonstrations.cameras, of_task)
            rows = [
                {
                    **about,
                    **identities[contestant],
                    "seed": str(seed),
                    "successes": int(won.sum()),
                    "trials": len(won),
                }
                for seed, won in enumerate(successes)
            ]
            results.add(rows)
            print(
                f"{task}: {contestant.title}: "
                + ", ".join(f"{row['successes']}/{row['trials']}" for row in rows),
                flush=True,
            )
    return results


def _recorded(task: str, protocol: Protocol, folder: Path) -> Path:
    """The path of the task's demonstrations, which are recorded if they do not exist."""
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
    contestant: Contestant,
    task: str,
    cameras: Sequence[str],
    protocol: Protocol,
) -> dict[str, Any]:
    """The columns of a row that say how it was measured."""
    return {
        "suite": task.partition("/")[0],
        "set": set_of_task(task, protocol.pictures.looks),
        "task": task,
        "encoder": contestant.name,
        "source": contestant.source or "",
        "policy": contestant.policy,
        "cameras": " ".join(camera.removesuffix("_image") for camera in cameras),
        "picture_size": protocol.pictures.picture_size,
        "looks": protocol.pictures.looks,
        "demonstrations": protocol.demonstrations,
        "horizon": protocol.horizon or "",
        "versions": versions(),
        "hardware": processor(),
    }


# --------------------------------------------------------------------------- one task, one encoder


class PictureFeatures:
    """The features that a policy receives: those of all cameras, or none.

    Pooled features of the cameras are concatenated, [..., V * D]. Maps are [..., V, D, h, w].

    source, encoder: None = no features
    output:          "pooled", or "spatial" for maps
    device:          where the encoder is
    key:             of weights, network and preprocessing, for the names of folders

    One engine computes the features of demonstrations and rollouts: ONNX Runtime on a CPU if it is
    installed, else torch.
    """

    def __init__(
        self,
        source: str | None,
        encoder: Encoder | None,
        output: str = "pooled",
        device: str = "cpu",
    ):
        self.source, self.encoder, self.output, self.device = source, encoder, output, device
        self.key = encoder_fingerprint(encoder)[:16] if encoder else ""
        self.engine = fastest_engine(device, "fp32")

    @cached_property
    def _network(self) -> Network:
        assert self.encoder is not None
        if self.engine != "onnx":
            return torch_network(self.encoder, self.output, "fp32")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            write_network(path, self.encoder, self.output)
            return onnx_network(path, torch.get_num_threads())

    def of_demonstrations(
        self, demonstrations: Demonstrations, path: Path, folder: Path
    ) -> np.ndarray:
        """Features of all steps of the HDF5 file `path`, cached in `folder`.

        float32 [N, V * D], or maps float16 [N, V, D, h, w]
        """
        if self.source is None:
            return np.zeros((len(demonstrations.actions), 0), np.float32)
        # In this process, because workers would take longer to start.
        config = FeatureConfig(
            output=self.output,
            dtype="fp32" if self.output == "pooled" else "fp16",
            device=self.device,
            engine=self.engine,
            workers=1,
        )
        name = self.key if self.output == "pooled" else f"{self.key}_{self.output}"
        return self._side_by_side(
            np.array(extract_features(self.source, path, folder / name, config).array)
        )

    def of_observation(self, observation: Observation) -> np.ndarray:
        """Features of B observations, float32 [B, V * D] or [B, V, D, h, w]."""
        if self.encoder is None:
            return np.zeros((len(observation["proprioception"]), 0), np.float32)
        cameras = sorted(key for key in observation if key.endswith("_image"))  # as in the cache
        pictures = np.stack([observation[key] for key in cameras], axis=1)
        pixels = self.encoder.preprocess(rearrange(pictures, "b v h w c -> (b v) h w c"))
        features = self._network(pixels).cpu().numpy()
        return self._side_by_side(rearrange(features, "(b v) ... -> b v ...", v=len(cameras)))

    def _side_by_side(self, features: np.ndarray) -> np.ndarray:
        return rearrange(features, "n v d -> n (v d)") if self.output == "pooled" else features


def frozen_policies(
    picture_features: PictureFeatures,
    features: np.ndarray,
    demonstrations: Demonstrations,
    protocol: Protocol,
    device: str = "cpu",
) -> Act:
    """Train a policy per seed on frozen features; returns the function that they act by.

    features: `picture_features` of the demonstrations' steps, [N, V * D] or [N, V, D, h, w]
    Policies see the demonstrations' `low_dim`: proprioception, or nothing if it has no columns.
    """
    config = protocol.policy
    if picture_features.source is None:
        config = replace(config, feature_norm="none")
    lengths, seeds = demonstrations.recordings.lengths, range(protocol.seeds)
    policies = train_policies(
        features, demonstrations.low_dim, demonstrations.actions, config, seeds, lengths, device
    )

    @torch.inference_mode()
    def act(chosen: np.ndarray, observation: Observation) -> np.ndarray:
        seen = picture_features.of_observation(observation)
        felt = observation["proprioception"][:, : demonstrations.low_dim.shape[1]]
        return policies.act(chosen, seen, felt)

    return act


def learning_policies(
    picture_features: PictureFeatures,
    demonstrations: Path,
    folder: Path,
    protocol: Protocol,
    device: str = "cpu",
) -> Act:
    """Train a policy per seed together with its encoder; returns the function that they act by.

    Each policy has an encoder of its own, which starts from the weights of `picture_features` and
    sees the pictures that a frozen one would see. The runs are kept in `folder`.
    """
    assert picture_features.source is not None
    policy = asdict(protocol.policy)
    config = BehaviourCloning(
        demonstrations=DemonstrationConfig(data=str(demonstrations), val_fraction=0),
        observations=ObservationConfig(
            encoder=picture_features.source,
            freeze_encoder=False,
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


def try_policies(
    task: str, act: Act, protocol: Protocol, processes: int = 0, blind: bool = False
) -> np.ndarray:
    """Roll out the policies of all seeds; returns the successes, bool [seeds, rollouts].

    blind: the policies see no pictures, so none are rendered
    """
    pictures = replace(protocol.pictures, picture_size=0) if blind else protocol.pictures
    slots = [(seed, scene) for scene in range(protocol.rollouts) for seed in range(protocol.seeds)]
    successes = run_rollouts(
        task,
        act,
        slots,
        processes,
        simulators=_SIMULATORS,
        pictures=pictures,
        horizon=protocol.horizon,
    )
    return successes.reshape(protocol.rollouts, protocol.seeds).T
