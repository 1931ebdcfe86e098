"""Augmentation as named policies, shared by all recipes: one warp, a flip, light, colour, an erased rectangle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Policy:
    """How far each thing may go, drawn evenly for each photo.

    ``rotate`` in radians, ``zoom`` in shares of the photo, ``shift`` in shares of half of it, ``light`` and ``colour`` (of each
    channel) as factors 1 ± that; ``flip`` and ``erase`` are the share of photos that are mirrored, or lose a rectangle to white
    (random erasing, Zhong et al. 2017, https://arxiv.org/abs/1708.04896). Colours must be told, so that ``colour`` stays small.
    """

    rotate: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    light: float = 0.0
    colour: float = 0.0
    flip: float = 0.0
    erase: float = 0.0


POLICIES = {
    "none": Policy(),
    "light": Policy(rotate=0.03, zoom=0.05, shift=0.03, light=0.05, flip=0.5),
    "standard": Policy(rotate=0.1, zoom=0.15, shift=0.1, light=0.1, colour=0.02, flip=0.5),
    "strong": Policy(rotate=0.2, zoom=0.3, shift=0.2, light=0.2, colour=0.04, flip=0.5, erase=0.5),
}


def augment(photos: Tensor, policy: Policy, rng: torch.Generator, size: tuple[int, int] | None = None) -> Tensor:
    """uint8 photos (n, h, w, 3) → floats 0–255 (n, 3, *size), on the photos' device; what is warped in is white.

    Args:
        photos: as packed.
        policy: one of ``POLICIES``.
        rng: a CPU generator: the same state gives the same photos on every device.
        size: (height, width), by default the photos' own.
    """
    n, device = len(photos), photos.device
    size = size or (photos.shape[1], photos.shape[2])
    if policy == Policy():
        return photos.permute(0, 3, 1, 2).float()

    def spread(limit: float, *shape: int) -> Tensor:
        return ((torch.rand(n, *shape, generator=rng) * 2 - 1) * limit).to(device)

    angle, zoom = spread(policy.rotate), 1 + spread(policy.zoom)
    flip = torch.where(spread(1.0) < 2 * policy.flip - 1, -1.0, 1.0)
    shift = spread(policy.shift, 2)
    ratio = photos.shape[1] / photos.shape[2]
    rows = torch.stack(
        [angle.cos() * zoom * flip, -angle.sin() * zoom * ratio, shift[:, 0], angle.sin() * zoom * flip / ratio,
         angle.cos() * zoom, shift[:, 1]], 1
    )  # fmt: skip
    with torch.autocast(device.type, enabled=False):  # else it is made in 8 bits of mantissa: half a pixel of 224
        grid = F.affine_grid(rows.view(n, 2, 3), [n, 3, *size], align_corners=False)
    x = photos.permute(0, 3, 1, 2).float() - 255.0  # zero padding is white
    x = F.grid_sample(x, grid, align_corners=False) + 255.0
    if policy.erase:
        centre, half = spread(0.5, 2, 1), 0.125 + spread(0.075, 2, 1).abs()
        lines = [(torch.arange(s, device=device) + 0.5)[None] / s - 0.5 for s in size]
        inside = [((line - centre[:, n]).abs() < half[:, n]) for n, line in enumerate(lines)]
        erased = inside[0][:, :, None] & inside[1][:, None, :] & (spread(1.0, 1, 1) > 1 - 2 * policy.erase)
        x = x.masked_fill(erased[:, None], 255.0)
    x = x * (1 + spread(policy.light, 1, 1, 1)) * (1 + spread(policy.colour, 3, 1, 1))
    return x.clamp(0, 255)
