"""What the contrastive objectives share: similarity, loss over candidates, choice of other clips.

An objective scores one positive and some negatives for every anchor and stacks the scores to
logits [..., 1 + num_negatives] with **the positive in column 0**. From there all of them are the
same. Nothing here has parameters or knows about frames; the objectives in this folder call it,
nobody else does. Everything expects float32: the objectives leave autocast before they call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mcr.errors import UserError, require_choice
from mcr.runs.gather import gather_rows

SIMILARITIES = ("l2", "cosine")
FORMS = ("log_softmax", "epsilon")
SELECTIONS = ("others", "permutation")

EPSILON = 1e-8  # of the "epsilon" form, as in R3M and MCR
MIN_NORM = 1e-6  # below it "cosine" stops normalising, which keeps the gradient at 0 finite


@dataclass
class ContrastConfig:
    """The options that every contrastive objective has.

    similarity:  "l2" = -||a - b||_2, or "cosine"
    temperature: similarities are divided by it; 1 is upstream's, "cosine" wants about 0.1
    form:        "log_softmax", or "epsilon" for the loss that trained the released weights

    Raises UserError for an unknown name or a temperature that is not positive.
    """

    similarity: str = "l2"
    temperature: float = 1.0
    form: str = "log_softmax"

    def __post_init__(self) -> None:
        require_choice("similarity", self.similarity, SIMILARITIES)
        require_choice("form", self.form, FORMS)
        if not 0 < self.temperature < math.inf:
            raise UserError(f"temperature={self.temperature} must be positive; 1 is upstream's")


def similarity(a: Tensor, b: Tensor, config: ContrastConfig) -> Tensor:
    """Score of each row of `a` [..., D] with the same row of `b` [..., D] (broadcasting): [...].

    Where a == b the gradient of "l2" is 0, not NaN. That happens: LATE may be the MIDDLE frame,
    and a random permutation may pair a clip with itself.
    """
    if config.similarity == "l2":
        score = -torch.linalg.vector_norm(a - b, dim=-1)
    else:
        score = (_unit(a) * _unit(b)).sum(-1)
    return score / config.temperature


def pairwise_similarity(a: Tensor, b: Tensor, config: ContrastConfig) -> Tensor:
    """Score of every row of `a` [N, D] with every row of `b` [M, D]: [N, M]."""
    if config.similarity == "l2":
        # |a|^2 + |b|^2 - 2ab would be faster, but loses the distance of close pairs to rounding.
        score = -torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    else:
        score = _unit(a) @ _unit(b).mT
    return score / config.temperature


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1, eps=MIN_NORM)


def contrastive_loss(logits: Tensor, config: ContrastConfig) -> Tensor:
    """Mean over all rows of how badly the positive stands out: logits [..., 1 + N] -> scalar.

    log_softmax:  -log(e^p / sum_j e^j), finite with a finite gradient at any distance.
    epsilon:      -log(eps + e^p / (eps + sum_j e^j)), eps = 1e-8.

    The epsilon form takes the exponentials literally, as upstream does. Beyond a distance of about
    18 (e^-18 = eps) the loss no longer compares candidates, beyond about 40 it stands at
    -log(eps) = 18.42 and its gradient vanishes: at 42.4 it is 200 times weaker than that of
    log_softmax, and a random ResNet-50's embeddings, of norm 40 to 50, start at such distances
    from their dynamics. Kept to reproduce the released weights.
    """
    if config.form == "log_softmax":
        # Upstream: only the epsilon form, whose gradient vanishes where training starts.
        return -F.log_softmax(logits, dim=-1)[..., 0].mean()
    scores = logits.exp()
    return -torch.log(EPSILON + scores[..., 0] / (EPSILON + scores.sum(-1))).mean()


def contrastive_metrics(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(accuracy, chance) of logits [..., 1 + N]: float32 scalars in [0, 1], without gradient.

    Accuracy is the share of rows whose positive is strictly the largest, so a collapsed encoder,
    for which all candidates tie, scores 0 and not 1. Chance is 1 / (1 + N).
    """
    logits = logits.detach()
    accuracy = (logits[..., 0] > logits[..., 1:].amax(-1)).float().mean()
    # full() fills on the device; copying a number there would make the host wait.
    return accuracy, torch.full((), 1 / logits.shape[-1], device=logits.device)


def gather_candidates(embeddings: Tensor) -> tuple[Tensor, int]:
    """The embeddings that may serve as negatives, and where among them the given ones begin.

    embeddings [B, D] -> (candidates [N, D], first), with candidates[first : first + B] being the
    embeddings themselves. All negatives from other clips come through here, those of other
    processes included: N is the size of the global batch, and gradients flow back to its owners.
    """
    return gather_rows(embeddings)


def positives_first(logits: Tensor, first: int) -> Tensor:
    """Rotate each row of logits [R, N] so that its positive, row i's column first + i, leads."""
    rows, columns = (torch.arange(n, device=logits.device) for n in logits.shape)
    return logits.gather(1, (first + rows[:, None] + columns) % logits.shape[1])


def choose_other_clips(
    num_clips: int, num_negatives: int, selection: str, device: torch.device, group: int = 0
) -> Tensor:
    """For each of `num_clips` clips, which clips are its negatives: int64 [num_clips, n].

    others:       n distinct clips, never the clip itself: random cyclic shifts of the batch;
                  n = min(num_negatives, num_clips - 1).
    permutation:  n = num_negatives random permutations of the batch.
    group:        negatives come from the same `group` consecutive clips, as if each group were a
                  batch of its own; 0 = from all

    A pure function of the arguments and of the state of `device`'s global random generator; drawn
    on the device, so that the host does not wait for it.

    Raises UserError if there is no other clip to choose, or if groups do not divide the clips.
    """
    size = group or num_clips
    if num_clips % size:
        raise UserError(f"{num_clips} clips do not divide into groups of {group} for negatives")
    within = _choose_within(size, num_negatives, selection, device)
    groups = torch.arange(0, num_clips, size, device=device)
    return rearrange(groups[:, None, None] + within, "g c n -> (g c) n")


def _choose_within(
    num_clips: int, num_negatives: int, selection: str, device: torch.device
) -> Tensor:
    if selection == "permutation":
        # As upstream, a clip may be its own negative (9% of samples at 32 clips, 3 negatives).
        draws = [torch.randperm(num_clips, device=device) for _ in range(num_negatives)]
        return torch.stack(draws, dim=1)
    if num_clips == 1:
        raise UserError(
            "a batch of 1 clip has no other clips for negatives; "
            "use at least 2 clips per batch, or num_negatives=0"
        )
    # Upstream: permutations only. Here no clip is its own negative.
    shifts = 1 + torch.randperm(num_clips - 1, device=device)[:num_negatives]
    return (torch.arange(num_clips, device=device)[:, None] + shifts) % num_clips
