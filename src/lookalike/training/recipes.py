"""The recipes that learn from labels: classify (and scratch), siamese, metric. What they share is in ``loop``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lookalike.encoders.torch import Backbone
from lookalike.errors import InputError
from lookalike.training.loop import Batch, Recipe
from lookalike.training.options import Classify, Metric, Siamese
from lookalike.training.photos import Photos


class ClassifyRecipe(Recipe):
    """A new linear head on pooled features, cross-entropy; the features are what is exported.

    Use it where a label is all that you have, and few labels have many photos. Transfer by a new head and the last stage:
    Yosinski et al. 2014, https://arxiv.org/abs/1411.1792.
    """

    options: Classify

    def __init__(self, photos: Photos, backbone: Backbone, options: Classify):
        super().__init__(photos, backbone, options)
        self.head = nn.Linear(backbone.dim, len(photos.names))
        self.register_buffer("labels", torch.from_numpy(photos.labels), persistent=False)

    def loss(self, rows: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Cross-entropy and accuracy."""
        assert isinstance(self.labels, Tensor)
        logits, labels = self.head(self.net.net(x)), self.labels[rows]
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.options.smoothing)
        return {"loss": loss, "accuracy": (logits.argmax(1) == labels).float().mean()}


class _Embedding(nn.Module):
    """Feature maps → global pooling → dense layer."""

    def __init__(self, net: nn.Module, dim: int, width: int, pooling: str):
        super().__init__()
        self.net, self.pooling = net, pooling
        self.dense = nn.Linear(width, dim) if dim else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Normalised photos (n, 3, h, w) → (n, dim)."""
        pooled = self.net.forward_features(x).amax((2, 3)) if self.pooling == "max" else self.net(x)  # type: ignore[operator]
        out: Tensor = self.dense(pooled)
        return out


def _embedded(recipe: Recipe, backbone: Backbone, dim: int, pooling: str) -> None:
    """Put the embedding between the backbone and the unit sphere."""
    width = backbone.dim
    if pooling == "max":
        with torch.no_grad():
            maps = backbone.net.eval().forward_features(torch.zeros(1, 3, *backbone.preprocess.size))  # type: ignore[operator]
        if maps.ndim != 4:
            raise InputError(f"--start {backbone.name}: gives no feature maps; a siamese net wants a convolutional one")
        width = maps.shape[1]
    recipe.net.net = _Embedding(backbone.net, dim, width, pooling)


class SiameseRecipe(Recipe):
    """Pairs through one net; the contrastive loss of Hadsell, Chopra and LeCun 2006 on Euclidean distance.

    In pytorch-metric-learning's form: the distance itself and what it lacks to the margin, rather than their squares, and
    the mean over the pairs that are not at 0 yet. Distances are between unit vectors (0 to 2), so that the order by
    distance is the order by cosine that search uses. A pair counts as right where it is nearer than half of the margin, or
    further for two labels. Use ``metric`` instead where labels have four photos or more: it learns from all pairs of a batch.
    """

    options: Siamese

    def __init__(self, photos: Photos, backbone: Backbone, options: Siamese):
        super().__init__(photos, backbone, options)
        _embedded(self, backbone, options.dim, "max")
        self.register_buffer("labels", torch.from_numpy(photos.labels), persistent=False)
        self._anchors = {split: self._pairable(photos.validation == split) for split in (False, True)}
        for split, name in ((False, "training"), (True, "validation")):
            if not len(self._anchors[split]):
                raise InputError(
                    f"no label has two {name} photos to make a pair of; lower --validation or merge labels"
                )
            if len(np.unique(photos.labels[photos.validation == split])) < 2:
                raise InputError(
                    f"all {name} photos are of one label, so that there are no negative pairs; add products, or change --label"
                )

    def _pairable(self, among: NDArray[np.bool_]) -> NDArray[np.int64]:
        labels = self.photos.labels
        counts = np.bincount(labels[among], minlength=len(self.photos.names))
        return np.flatnonzero(among & (counts[labels] > 1))

    def _groups(self, rng: np.random.Generator, anchors: NDArray[np.int64], validation: bool) -> list[list[int]]:
        """Of each anchor: itself, a photo of the same label, ``negatives`` photos of others."""
        labels, among = self.photos.labels, np.flatnonzero(self.photos.validation == validation)
        of = {int(label): among[labels[among] == label] for label in np.unique(labels[among])}
        out = []
        for anchor in anchors:
            same = of[int(labels[anchor])]
            positive = anchor
            while positive == anchor:
                positive = int(rng.choice(same))
            group = [int(anchor), positive]
            while len(group) < 2 + self.options.negatives:
                other = int(rng.choice(among))
                if labels[other] != labels[anchor]:
                    group.append(other)
            out.append(group)
        return out

    def draw(self, epoch: int) -> list[Batch]:
        """Each training photo is an anchor once; ``batch`` counts photos."""
        rng = np.random.default_rng((self.options.seed, epoch))
        groups = self._groups(rng, rng.permutation(self._anchors[False]), False)
        return self._batched(groups, self.options.batch * self.options.devices)

    def draw_validation(self, epoch: int) -> list[Batch]:
        """The same pairs in every epoch."""
        rng = np.random.default_rng(self.options.seed)
        return self._batched(self._groups(rng, self._anchors[True], True), 64)

    def _batched(self, groups: list[list[int]], photos: int) -> list[Batch]:
        size = max(2, photos // (2 + self.options.negatives))
        made = [np.array(groups[n : n + size]) for n in range(0, len(groups), size)]
        if len(made) > 1 and len(made[-1]) == 1:  # the loss is 0 where there is but one pair
            made[-2:] = [np.concatenate(made[-2:])]
        return made

    def loss(self, rows: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Contrastive loss, accuracy of the pairs, mean distance of positive and of negative pairs."""
        from pytorch_metric_learning.distances import LpDistance
        from pytorch_metric_learning.losses import ContrastiveLoss
        from pytorch_metric_learning.miners import BatchEasyHardMiner

        assert isinstance(self.labels, Tensor)
        o = self.options
        width = 2 + o.negatives
        vectors = F.normalize(self.net.net(x).float(), dim=-1)
        distance = LpDistance(normalize_embeddings=False, p=2, power=1)
        first = torch.arange(0, len(vectors), width, device=vectors.device)
        negative = torch.cat([first + n for n in range(2, width)])
        a2 = first.repeat(o.negatives)
        pairs = (first, first + 1, a2, negative)
        near, far = (
            torch.linalg.vector_norm(vectors[a] - vectors[b] + 1e-6, dim=-1)
            for a, b in ((first, first + 1), (a2, negative))
        )
        if o.mine and self.training:  # the hardest negatives of the batch (Hermans et al. 2017) beside those drawn
            miner: Any = BatchEasyHardMiner(pos_strategy="all", neg_strategy="hard", distance=distance)
            _, _, anchors, hard = miner(vectors, self.labels[rows])
            pairs = (*pairs[:2], torch.cat([a2, anchors]), torch.cat([negative, hard]))
        criterion = ContrastiveLoss(pos_margin=0, neg_margin=o.margin, distance=distance)
        loss = criterion(vectors, indices_tuple=pairs)
        right = torch.cat([near < o.margin / 2, far >= o.margin / 2]).float()
        return {
            "loss": loss,
            "accuracy": right.mean(),
            "positive_distance": near.mean(),
            "negative_distance": far.mean(),
        }


class MetricRecipe(Recipe):
    """Deep metric learning by pytorch-metric-learning on batches of P labels with K photos each.

    triplet (Schroff et al. 2015) with semi-hard mining, multi-similarity with its miner (Wang et al. 2019), proxy-anchor
    (Kim et al. 2020), contrastive, supcon (Khosla et al. 2020), arcface (Deng et al. 2019), circle (Sun et al. 2020). Use it
    where labels are items, or many; ``classify`` where they are few.
    """

    options: Metric
    monitor, sign = "validation_accuracy", 1

    def __init__(self, photos: Photos, backbone: Backbone, options: Metric):
        super().__init__(photos, backbone, options)
        _embedded(self, backbone, options.dim, "average")
        self.register_buffer("labels", torch.from_numpy(photos.labels), persistent=False)
        self.criterion, self.miner = _criterion(options.loss, len(photos.names), options.dim or backbone.dim)
        training = np.unique(photos.labels[~photos.validation])
        self._p = min(options.batch * options.devices // options.k, len(training))
        if self._p < 2:
            raise InputError(f"{len(training)} labels have training photos; --batch / --k wants two at least")

    def draw(self, epoch: int) -> list[Batch]:
        """As many photos as there are for training, P × K at a time."""
        from pytorch_metric_learning.samplers import MPerClassSampler
        from pytorch_metric_learning.utils import common_functions

        rows = np.flatnonzero(~self.photos.validation)
        size = self._p * self.options.k
        kept = common_functions.NUMPY_RANDOM
        common_functions.NUMPY_RANDOM = np.random.RandomState([self.options.seed, epoch])
        try:
            sampler = MPerClassSampler(self.photos.labels[rows], self.options.k, size, max(size, len(rows)))
            order = rows[np.fromiter(sampler, np.int64)]
        finally:
            common_functions.NUMPY_RANDOM = kept
        return [order[n : n + size] for n in range(0, len(order), size)]

    def draw_validation(self, epoch: int) -> list[Batch]:
        """Batches that hold several photos of a label, so that there is something to compare."""
        rows = np.flatnonzero(self.photos.validation)
        rows = rows[np.argsort(self.photos.labels[rows], kind="stable")]
        # Every n-th of the sorted rows: a batch then spans all labels, with neighbours of equal label two by two.
        paired = rows[: len(rows) // 2 * 2].reshape(-1, 2)
        count = max(1, len(paired) // 32)
        return [paired[n::count].flatten() for n in range(count)]

    def loss(self, rows: Tensor, x: Tensor) -> dict[str, Tensor]:
        """The loss, and P@1 within the batch."""
        assert isinstance(self.labels, Tensor)
        vectors, labels = F.normalize(self.net.net(x).float(), dim=-1), self.labels[rows]
        mined = self.miner(vectors, labels) if self.miner is not None else None
        loss = self.criterion(vectors, labels, mined)
        scores = (vectors @ vectors.T).fill_diagonal_(-2)
        himself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        paired = ((labels[:, None] == labels[None]) & ~himself).any(1)
        right = (labels[scores.argmax(1)] == labels)[paired].float()
        return {"loss": loss, "accuracy": right.mean() if len(right) else loss.detach() * 0}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Proxies learn faster (Kim et al. 2020)."""
        proxies = {id(p) for p in self.criterion.parameters()}
        groups = super().parameter_groups()
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in proxies]
        groups.append(
            {"params": list(self.criterion.parameters()), "lr": self.options.rate * self.options.proxy_rate,
             "weight_decay": 0.0}
        )  # fmt: skip
        return [g for g in groups if g["params"]]


def _criterion(name: str, classes: int, dim: int) -> tuple[nn.Module, nn.Module | None]:
    from pytorch_metric_learning import losses, miners

    match name:
        case "triplet":
            return losses.TripletMarginLoss(margin=0.2), miners.TripletMarginMiner(
                margin=0.2, type_of_triplets="semihard"
            )
        case "multi-similarity":
            return losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5), miners.MultiSimilarityMiner(epsilon=0.1)
        case "proxy-anchor":
            return losses.ProxyAnchorLoss(classes, dim, margin=0.1, alpha=32), None
        case "contrastive":
            return losses.ContrastiveLoss(pos_margin=0, neg_margin=0.5), None
        case "supcon":
            return losses.SupConLoss(temperature=0.1), None
        case "arcface":
            return losses.ArcFaceLoss(classes, dim, margin=28.6, scale=64), None
        case _:
            return losses.CircleLoss(m=0.4, gamma=80), None
