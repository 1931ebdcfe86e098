"""The two towers of the built-in model: photo → unit vector, text → unit vector, in one space.

Both keep to operators that onnxruntime quantises well on any CPU: the photo tower is MobileNetV1 (Howard et al. 2017,
https://arxiv.org/abs/1704.04861), the text tower a table of word pieces, one attention block and a linear bag of words.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
"""MobileNetV1's thirteen separable blocks: channels out, stride."""

MAX_TOKENS = 32


class Conv(nn.Module):
    """Convolution, optional batch normalisation, ReLU6.

    Stride 2 pads right and below only, as TensorFlow's SAME does on even sizes: the ImageNet weights were made so.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, norm: bool = True):
        super().__init__()
        self.pad = (0, 1, 0, 1) if stride == 2 else None
        padding = 0 if stride == 2 else kernel // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=not norm)
        self.norm = nn.BatchNorm2d(outputs) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Tensor (n, inputs, h, w) → (n, outputs, h / stride, w / stride)."""
        if self.pad:
            x = F.pad(x, self.pad)
        out: Tensor = F.relu6(self.norm(self.conv(x)))
        return out


class PhotoTower(nn.Module):
    """uint8 photos (n, height, width, 3) → unit vectors (n, dim). Height and width: multiples of 32.

    The first ``frozen`` separable blocks keep their ImageNet weights, without batch normalisation: they are two thirds
    of the memory traffic of a training step and change least.
    """

    def __init__(self, dim: int = 256, frozen: int = 0, width: float = 1.0):
        super().__init__()
        c = int(32 * width)
        layers = [Conv(3, c, 3, 2, norm=frozen == 0)]
        for block, (outputs, stride) in enumerate(WIDTHS):
            norm, o = block >= frozen, int(outputs * width)
            layers += [Conv(c, c, 3, stride, groups=c, norm=norm), Conv(c, o, 1, norm=norm)]
            c = o
        self.layers = nn.ModuleList(layers)
        self.frozen = 1 + 2 * frozen if frozen else 0
        self.project = nn.Linear(2 * c, dim)
        self.features = 2 * c

    def pooled(self, pixels: Tensor) -> Tensor:
        """Photos as floats (n, 3, h, w) in −1 … 1 → features (n, 2 × channels): average beside maximum."""
        x = pixels
        with torch.no_grad():
            for layer in self.layers[: self.frozen]:
                x = layer(x)
        for layer in self.layers[self.frozen :]:
            x = layer(x)
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)

    def forward(self, photos: Tensor) -> Tensor:
        """The exported graph: bytes in, unit vectors out; normalisation is part of it."""
        pixels = (photos.permute(0, 3, 1, 2).float() - 128.0) / 128.0
        return F.normalize(self.project(self.pooled(pixels)), dim=-1)

    def calibrate(self, pixels: Tensor) -> None:
        """As the function ``calibrate``."""
        calibrate(self.layers, pixels)


class Trunk(nn.Module):
    """The convolutions of a ``PhotoTower`` alone: floats (n, 3, h, w) in −1 … 1 → average of each map (n, channels)."""

    def __init__(self, layers: nn.ModuleList):
        super().__init__()
        self.layers = layers

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps (n, channels, h / 32, w / 32)."""
        for layer in self.layers:
            x = layer(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, channels)."""
        return self.forward_features(x).mean((2, 3))


class SimpleCNN(nn.Module):
    """The usual first net: four blocks of convolution, batch normalisation, ReLU, maximum of 2 × 2; then the average."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256)):
        super().__init__()
        blocks: list[nn.Module] = []
        for inputs, outputs in zip((3, *widths), widths, strict=False):
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            blocks.append(nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)))
        self.blocks = nn.Sequential(*blocks)

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps (n, channels, h / 16, w / 16)."""
        out: Tensor = self.blocks(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, channels)."""
        return self.forward_features(x).mean((2, 3))


@torch.no_grad()
def calibrate(layers: nn.ModuleList, pixels: Tensor) -> None:
    """Set each batch normalisation so that the net computes what its folded weights computed, on this batch."""
    x = pixels
    for layer in layers:
        assert isinstance(layer, Conv)
        y = layer.conv(F.pad(x, layer.pad) if layer.pad else x)
        if isinstance(layer.norm, nn.BatchNorm2d):
            mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3))
            layer.norm.running_mean, layer.norm.running_var = mean.clone(), var.clone()
            layer.norm.weight.copy_((var + layer.norm.eps).sqrt())
            layer.norm.bias.add_(mean)  # the folded bias was loaded into it
            y = F.batch_norm(y, mean, var, layer.norm.weight, layer.norm.bias, eps=layer.norm.eps)
        x = F.relu6(y)


class TextTower(nn.Module):
    """Token ids (n, length), 0 where padded → unit vectors (n, dim).

    ``table`` is fixed (what a sentence model knows of each word piece), ``delta`` is learnt; dropping ``delta`` for some
    samples teaches the rest of the tower to read words that no training title holds.
    """

    def __init__(self, table: Tensor, dim: int = 256, width: int = 256, heads: int = 4, drop_delta: float = 0.3):
        super().__init__()
        vocabulary, size = table.shape
        self.register_buffer("table", table)
        self.delta = nn.Parameter(torch.zeros(vocabulary, size))
        self.drop_delta, self.heads = drop_delta, heads
        self.enter = nn.Linear(size, width)
        self.position = nn.Parameter(torch.randn(MAX_TOKENS, width) * 0.02)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.project, self.bag = nn.Linear(width, dim), nn.Linear(size, dim)

    def words(self, ids: Tensor) -> Tensor:
        """Token ids → their vectors (n, length, size)."""
        assert isinstance(self.table, Tensor)
        delta = F.embedding(ids, self.delta)
        if self.training:
            keep = torch.rand(len(ids), 1, 1, device=ids.device) >= self.drop_delta
            delta = delta * keep
        return F.embedding(ids, self.table) + delta

    def forward(self, ids: Tensor) -> Tensor:
        """One attention block over the words, plus a linear bag of the same words."""
        return self.read(self.words(ids), (ids != 0).float().unsqueeze(-1))

    def read(self, words: Tensor, mask: Tensor) -> Tensor:
        """Word vectors (n, length, size) and mask (n, length, 1) → unit vectors (n, dim)."""
        n, length, _ = words.shape
        x = self.enter(words) + self.position[:length]
        q, k, v = self.qkv(self.norm1(x)).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        scores = scores.masked_fill(mask.reshape(n, 1, 1, length) == 0, -1e4)
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, length, -1))
        x = x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))
        count = mask.sum(1).clamp(min=1)
        attended = (self.norm3(x) * mask).sum(1) / count
        bag = (words * mask).sum(1) / count
        return F.normalize((self.project(attended) + self.bag(bag)).float(), dim=-1)
