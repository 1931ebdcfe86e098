"""A training run on disk: nets, optimiser and notes in one safetensors file, replaced whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lookalike.errors import InputError


def save(file: Path, nets: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer, notes: dict[str, str]) -> None:
    """Write everything that a later process needs to go on."""
    tensors = {f"{name}.{k}": v for name, net in nets.items() for k, v in net.state_dict().items()}
    state = optimiser.state_dict()["state"]
    tensors |= {f"optimiser.{i}.{k}": v for i, s in state.items() for k, v in s.items()}
    part = file.with_suffix(".part")
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, part, notes)
    part.replace(file)


def read(file: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and notes of a checkpoint. Raises InputError where it is damaged."""
    try:
        with safe_open(file, "pt", device=str(device)) as saved:
            return {k: saved.get_tensor(k) for k in saved.keys()}, saved.metadata() or {}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: cannot be read ({error}); remove it and begin again") from error


def restore(tensors: dict[str, Tensor], nets: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer) -> None:
    """Put what ``read`` gave back in its place."""
    for name, net in nets.items():
        start = f"{name}."
        net.load_state_dict({k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)})
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, i, name = key.split(".")
            state.setdefault(int(i), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
