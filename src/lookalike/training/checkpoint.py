"""A training run on disk: nets, optimiser and notes (or any tree of them) in one safetensors file, replaced whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    _write(file, tensors, notes)


def _write(file: Path, tensors: Mapping[str, Tensor], notes: dict[str, str]) -> None:
    part = file.with_name(file.name + ".part")
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


def save_tree(file: Path, tree: Any) -> None:
    """Write nested dicts, lists, tuples, numbers, texts and tensors as one safetensors file, replaced whole.

    Raises:
        TypeError: something else is in it.
    """
    tensors: dict[str, Tensor] = {}
    shape = json.dumps(_taken_apart(tree, tensors, {}))
    _write(file, tensors, {"tree": shape})


def read_tree(file: Path, device: torch.device) -> Any:
    """What ``save_tree`` wrote. Raises InputError where it is damaged."""
    tensors, notes = read(file, device)
    try:
        return _put_together(json.loads(notes["tree"]), tensors)
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{file}: not a checkpoint of a recipe ({error}); remove it and begin again") from error


def _taken_apart(value: Any, tensors: dict[str, Tensor], seen: dict[Any, str]) -> Any:
    """JSON in which each container says what it is, since JSON has neither tuples nor numbers as keys."""
    if isinstance(value, Tensor):
        # Towers that share weights are kept once.
        place = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else id(value)
        if place not in seen:
            seen[place] = str(len(tensors))
            tensors[seen[place]] = value
        return {"tensor": seen[place]}
    if isinstance(value, Mapping):
        return {"dict": [[_taken_apart(k, tensors, seen), _taken_apart(v, tensors, seen)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"tuple" if isinstance(value, tuple) else "list": [_taken_apart(v, tensors, seen) for v in value]}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be kept in a checkpoint")


def _put_together(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {_put_together(k, tensors): _put_together(v, tensors) for k, v in inner}
    found = [_put_together(v, tensors) for v in inner]
    return tuple(found) if kind == "tuple" else found
