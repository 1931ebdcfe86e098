"""Encoders that run in torch (extra ``torch``): what they share with training and export."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Preprocess:
    """How an upright image becomes what a net takes; travels with the weights.

    ``size`` (height, width); ``mean`` and ``std`` of the channels, of values 0–1; ``fit`` as ``images.fit`` understands it.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    fit: str = "pad-white-bicubic"


@dataclass(frozen=True)
class Backbone:
    """A photo net without its classifier.

    ``net(x)``: normalised float (n, 3, height, width) → pooled features (n, ``dim``); ``net.forward_features(x)`` → maps
    (n, c, h, w). ``digest`` is of the weights.
    """

    net: nn.Module
    dim: int
    preprocess: Preprocess
    name: str
    digest: str


class PhotoNet(nn.Module):
    """Pixels uint8 (n, height, width, 3) → unit vectors (n, dim): a net with its normalisation, as it is exported."""

    def __init__(self, net: nn.Module, preprocess: Preprocess):
        super().__init__()
        self.net = net
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1) * 255, persistent=False)

    def normalised(self, pixels: Tensor) -> Tensor:
        """uint8 (n, height, width, 3) → what the net takes, float (n, 3, height, width)."""
        assert isinstance(self.mean, Tensor)
        assert isinstance(self.std, Tensor)
        return (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std

    def forward(self, pixels: Tensor) -> Tensor:
        """Unit vectors (n, dim)."""
        out: Tensor = F.normalize(self.net(self.normalised(pixels)).float(), dim=-1)
        return out
