"""Import this before timm, open_clip or lightning: they import torchvision.

Its compiled operators do not load beside every build of torch; declared, they are enough for what is tested here.
"""

from __future__ import annotations

import importlib
import sys

import torch

operators = None  # they live as long as this module does

try:
    importlib.import_module("torchvision")
except RuntimeError:
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
