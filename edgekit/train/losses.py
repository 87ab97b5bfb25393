"""What a training drives down: a sum of named terms, each with its paper.

`labels` is cross-entropy, or the bootstrapped one for labels that are partly wrong; `teacher` holds logits against the
teacher's; `relations` holds the distances and angles between the samples of a batch against those that the teacher
sees. Samples without a label (`-1`, or no labels at all) learn from the teacher alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.train.settings import Settings

RELATED = 128
"""Relations are taken within so many samples of a batch at most: angles are of every three of them."""


@dataclass(frozen=True)
class Truth:
    """The labels `[N]` of a batch, and, where samples were mixed, those of what was mixed in.

    `share` is that of the first in each sample, a number for all.
    """

    labels: Tensor | None
    others: Tensor | None = None
    share: float = 1.0

    def part(self, rows: slice) -> Truth:
        """That of some of the samples."""
        labels, others = (None if part is None else part[rows] for part in (self.labels, self.others))
        return Truth(labels, others, self.share)

    def to(self, device: torch.device) -> Truth:
        """The same on another device."""
        labels, others = (None if part is None else part.to(device) for part in (self.labels, self.others))
        return Truth(labels, others, self.share)


def terms(logits: Tensor, wanted: Tensor, truth: Truth, settings: Settings) -> dict[str, Tensor]:
    """The means over a batch of what a classifier is judged by, by name; their sum is the loss.

    `logits` and `wanted` are `[N, classes]` of student and teacher. With labels the terms are
    `(1 - alpha) * labels + alpha * teacher`; a sample without one counts `teacher` in full.
    """
    alpha = settings.alpha
    plain = settings.match.logits == "kl" and truth.others is None and not settings.regularize.bootstrap
    some = truth.labels is not None and bool((truth.labels < 0).any())
    if plain and not some:
        kl = divergence(logits, wanted, settings.temperature).mean() * settings.temperature * settings.temperature
        if truth.labels is None:
            return {"teacher": kl}
        hard = F.cross_entropy(logits, truth.labels, label_smoothing=settings.label_smoothing)
        return {"labels": (1 - alpha) * hard, "teacher": alpha * kl}
    return _by_sample(logits, wanted, truth, settings)


def _by_sample(logits: Tensor, wanted: Tensor, truth: Truth, settings: Settings) -> dict[str, Tensor]:
    """The same sample by sample, with one or two labels each, or none."""
    first = truth_or(truth.labels, wanted)
    pairs = [(first, truth.share)]
    if truth.others is not None:
        pairs.append((truth_or(truth.others, wanted), 1 - truth.share))
    given = [labels >= 0 for labels in (truth.labels, truth.others) if labels is not None]
    known = torch.stack(given).all(0) if given else torch.zeros_like(first, dtype=torch.bool)
    if settings.match.logits == "kl":
        soft = divergence(logits, wanted, settings.temperature) * settings.temperature**2
    else:
        soft = sum(share * _dkd(logits, wanted, labels, settings) for labels, share in pairs)  # type: ignore[assignment]
    hard = sum(share * _hard(logits, labels, settings) for labels, share in pairs)
    weight = torch.where(known, settings.alpha, 1.0)
    return {"labels": ((1 - weight) * hard).mean(), "teacher": (weight * soft).mean()}


def truth_or(labels: Tensor | None, wanted: Tensor) -> Tensor:
    """The class of every sample: its label, or what the teacher says where there is none."""
    said = wanted.argmax(-1)
    return said if labels is None else torch.where(labels >= 0, labels, said)


def _dkd(logits: Tensor, wanted: Tensor, labels: Tensor, settings: Settings) -> Tensor:
    match, soft = settings.match, settings.temperature
    target, others = decoupled(logits, wanted, labels, soft)
    return (match.dkd_target * target + match.dkd_others * others) * soft**2


def _hard(logits: Tensor, labels: Tensor, settings: Settings) -> Tensor:
    given = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing, reduction="none")
    if not settings.regularize.bootstrap:
        return given
    return bootstrapped(logits, given, settings.regularize.bootstrap)


def divergence(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of softened logits, a number a sample (Hinton et al. 2015, arXiv:1503.02531)."""
    distance = F.kl_div(
        F.log_softmax(logits / temperature, -1),
        F.log_softmax(wanted / temperature, -1),
        reduction="none",
        log_target=True,
    )
    return distance.sum(-1)


def decoupled(logits: Tensor, wanted: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The two parts of `divergence`, a number a sample each (DKD, Zhao et al. 2022, arXiv:2203.08679, eq. 7).

    The first is between the shares of the label's class and of all others together, the second between the others
    alone. With `p` the teacher's share of the label's class, `divergence = first + (1 - p) * second`.
    """
    at = labels[:, None]
    seen, taught = (F.log_softmax(x / temperature, -1) for x in (logits, wanted))
    rest = torch.zeros_like(seen, dtype=torch.bool).scatter_(1, at, True)
    seen_rest, taught_rest = (x.masked_fill(rest, -torch.inf).logsumexp(-1, keepdim=True) for x in (seen, taught))
    pair = [torch.cat([x.gather(1, at), r], 1) for x, r in ((seen, seen_rest), (taught, taught_rest))]
    target = F.kl_div(pair[0], pair[1], reduction="none", log_target=True).sum(-1)
    inner = (taught - taught_rest).exp() * ((taught - taught_rest) - (seen - seen_rest))
    return target, inner.masked_fill(rest, 0.0).sum(-1)


def bootstrapped(logits: Tensor, given: Tensor, share: float) -> Tensor:
    """Cross-entropy `given` with the labels, in part replaced by that with the class that the network itself believes.

    "Hard" bootstrapping with `beta = 1 - share` (Reed et al. 2014, arXiv:1412.6596, eq. 7), for labels of which some
    are wrong: what contradicts all else is not learned by heart.
    """
    return (1 - share) * given + share * F.cross_entropy(logits, logits.detach().argmax(-1), reduction="none")


def relations(student: Tensor, teacher: Tensor) -> Tensor:
    """How unlike samples lie to each other in two sets of vectors `[N, ...]` (Park et al. 2019, arXiv:1904.05068).

    Distances between two (as shares of their mean) and cosines of the angles between three, each by Huber's loss;
    angles count twice, as in the paper. Zero where there are fewer than two samples.
    """
    student, teacher = student[:RELATED], teacher[:RELATED]
    if len(student) < 2:
        return student.sum() * 0.0
    with torch.no_grad():
        far, wide = _distances(teacher), _angles(teacher)
    return F.smooth_l1_loss(_distances(student), far) + 2 * F.smooth_l1_loss(_angles(student), wide)


def _distances(vectors: Tensor) -> Tensor:
    squared = (vectors[:, None] - vectors[None]).square().sum(-1)
    near = squared <= 0  # the root has no slope at 0
    found = squared.masked_fill(near, 1.0).sqrt().masked_fill(near, 0.0)
    return found / (found.sum() / (~near).sum().clamp(min=1)).clamp(min=1e-12)


def _angles(vectors: Tensor) -> Tensor:
    """`[N, N, N]`: the cosine at the first sample between the second and the third."""
    ways = F.normalize(vectors[None] - vectors[:, None], dim=-1)
    return torch.bmm(ways, ways.transpose(1, 2))
