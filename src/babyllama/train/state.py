"""Resume state: float32 masters, optimiser moments, loss scale, random generators ↔ one safetensors file.

Not here: the folder, its checksums and how many are kept (run.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from babyllama.atomic import write_atomic
from babyllama.errors import InputError
from babyllama.train.optim import Masters


def save_state(folder: Path, masters: Masters, optimizers: list[torch.optim.Optimizer], facts: dict[str, Any]) -> None:
    """Fill an empty state folder. `facts` are plain JSON (step, tokens seen, …)."""
    tensors: dict[str, Tensor] = {f"master.{name}": p.detach() for name, p in masters.named}
    for index, optimizer in enumerate(optimizers):
        for key, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, folder / "state.safetensors")
    scale = {"scale": masters.scale, "calm": masters.calm}
    write_atomic(folder / "state.json", json.dumps({**facts, "loss_scale": scale}, indent=1))


def load_state(folder: Path, masters: Masters, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    """Put a saved state back, bit for bit; returns the facts.

    Raises:
        InputError: the state belongs to a model of other names or shapes.
    """
    tensors = load_file(folder / "state.safetensors")
    facts = json.loads((folder / "state.json").read_text("utf-8"))
    with torch.no_grad():
        for name, parameter in masters.named:
            saved = tensors.get(f"master.{name}")
            if saved is None or saved.shape != parameter.shape:
                found = "is missing" if saved is None else f"has shape {list(saved.shape)}"
                raise InputError(f"{folder}: {name} {found}, the model needs {list(parameter.shape)}")
            parameter.copy_(saved)
    for index, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, *rest = name.split(".")
            if kind == "optimizer" and int(rest[0]) == index:
                state.setdefault(int(rest[1]), {})[rest[2]] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    masters.scale, masters.calm = facts["loss_scale"]["scale"], facts["loss_scale"]["calm"]
    masters.publish()
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    return facts
