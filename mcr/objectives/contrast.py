"""What the contrastive objectives share: similarity, loss over candidates, choice of other clips.

An objective scores one positive and some negatives for every anchor, and stacks the scores to
logits [..., 1 + num_negatives] with **the positive in column 0**. Loss and metrics are then the
same for all. Nothing here has parameters. All tensors are float32: the objectives leave autocast
before they call these functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mcr.errors import UserError
from mcr.runs.gather import gather_rows
from mcr.runs.ranges import check_fields, choice, number

SIMILARITIES = ("l2", "cosine")
FORMS = ("log_softmax", "epsilon")
SELECTIONS = ("others", "permutation")

EPSILON = 1e-8  # of the "epsilon" form, as in R3M and MCR
MIN_NORM = 1e-6  # "cosine" does not normalise shorter vectors, so that the gradient stays finite


@dataclass
class ContrastConfig:
    """The options that every contrastive objective has.

    similarity:  "l2" = -||a - b||_2, or "cosine"
    temperature: divides similarities; 1 is upstream's, about 0.1 suits "cosine"
    form:        "log_softmax", or "epsilon", the loss that trained the released weights
    layer_norm:  normalise each embedding to mean 0 and variance 1 before it is compared, so that no
                 objective can win by making embeddings longer. It has no parameters

    Raises UserError for an unknown name or a temperature that is not positive.
    """

    similarity: Annotated[str, choice(SIMILARITIES)] = "l2"
    temperature: Annotated[float, number(above=0, note="1 is upstream's")] = 1.0
    form: Annotated[str, choice(FORMS)] = "log_softmax"
    layer_norm: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


def compared(embeddings: Tensor, config: ContrastConfig) -> Tensor:
    """What is compared of embeddings [..., D]: float32 [..., D]."""
    embeddings = embeddings.float()
    return F.layer_norm(embeddings, embeddings.shape[-1:]) if config.layer_norm else embeddings


def similarity(a: Tensor, b: Tensor, config: ContrastConfig) -> Tensor:
    """Similarity of each row of `a` [..., D] with the same row of `b` [..., D]: [...].

    The shapes are broadcast. Where a == b, the gradient of "l2" is 0 and not NaN. Such pairs occur:
    LATE may be the MIDDLE frame, and a random permutation may pair a clip with itself.
    """
    if config.similarity == "l2":
        score = -torch.linalg.vector_norm(a - b, dim=-1)
    else:
        score = (_unit(a) * _unit(b)).sum(-1)
    return score / config.temperature


def pairwise_similarity(a: Tensor, b: Tensor, config: ContrastConfig) -> Tensor:
    """Similarity of every row of `a` [N, D] with every row of `b` [M, D]: [N, M]."""
    if config.similarity == "l2":
        # |a|^2 + |b|^2 - 2ab is faster, but rounding errors exceed the distance of close pairs.
        score = -torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    else:
        score = _unit(a) @ _unit(b).mT
    return score / config.temperature


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1, eps=MIN_NORM)


def contrastive_loss(logits: Tensor, config: ContrastConfig) -> Tensor:
    """Contrastive loss of logits [..., 1 + N], as a mean over all rows: a scalar.

    log_softmax:  -log(e^p / sum_j e^j); loss and gradient are finite at any distance.
    epsilon:      -log(eps + e^p / (eps + sum_j e^j)), eps = 1e-8.

    The epsilon form computes the exponentials themselves, as upstream does. Beyond a distance of
    about 18 (e^-18 = eps), its loss no longer compares candidates. Beyond about 40, it is
    -log(eps) = 18.42 and its gradient vanishes: at 42.4 the gradient is 200 times weaker than that
    of log_softmax. The embeddings of a random ResNet-50, whose norm is 40 to 50, begin at such
    distances from their dynamics. The form is kept to reproduce the released weights.
    """
    if config.form == "log_softmax":
        # Upstream: only the epsilon form, whose gradient vanishes where training starts.
        return -F.log_softmax(logits, dim=-1)[..., 0].mean()
    scores = logits.exp()
    return -torch.log(EPSILON + scores[..., 0] / (EPSILON + scores.sum(-1))).mean()


def contrastive_metrics(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return (accuracy, chance) of logits [..., 1 + N]: float32 scalars in [0, 1], no gradient.

    accuracy: share of rows in which the positive is strictly the largest. A collapsed encoder, for
              which all candidates are equal, scores 0.
    chance:   1 / (1 + N)
    """
    logits = logits.detach()
    accuracy = (logits[..., 0] > logits[..., 1:].amax(-1)).float().mean()
    # full() fills on the device; copying a number to it would make the host wait.
    return accuracy, torch.full((), 1 / logits.shape[-1], device=logits.device)


def gather_candidates(embeddings: Tensor) -> tuple[Tensor, int]:
    """Gather the embeddings that may serve as negatives: those of the global batch of N clips.

    embeddings [B, D] -> (candidates [N, D], first), where candidates[first : first + B] are
    `embeddings`. Gradients flow back to the processes that computed the candidates.
    """
    return gather_rows(embeddings)


def positives_first(logits: Tensor, first: int) -> Tensor:
    """Rotate each row i of logits [R, N] so that its positive, column first + i, comes first."""
    rows, columns = (torch.arange(n, device=logits.device) for n in logits.shape)
    return logits.gather(1, (first + rows[:, None] + columns) % logits.shape[1])


def choose_other_clips(
    num_clips: int, num_negatives: int, selection: str, device: torch.device, group: int = 0
) -> Tensor:
    """Choose the clips that serve as negatives of each clip: int64 [num_clips, n].

    selection: "others" takes n = min(num_negatives, num_clips - 1) distinct clips, never the clip
               itself, by random cyclic shifts of the batch; "permutation" takes n = num_negatives
               random permutations of the batch
    group:     negatives come from the same `group` consecutive clips, as if each group were a batch
               of its own; 0 = from all clips

    The choice is drawn on `device`, so that the host does not wait, from its global random
    generator. Raises UserError if there is no other clip to choose, or if groups do not divide the
    clips.
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
