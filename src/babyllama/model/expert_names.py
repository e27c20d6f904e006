"""What experts are called in files: a tensor for each matrix of each, in the words of Mixtral and Qwen2-MoE; ours are
stacks.

    layers.0.mlp.experts.gate_proj (E, F, C)  ⇄  layers.0.block_sparse_moe.experts.3.w1.weight (F, C), …   Mixtral
                                              ⇄  layers.0.mlp.experts.3.gate_proj.weight, …               Qwen2-MoE

Not here: everything else's names, files (checkpoint.py).
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

MATRICES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}  # ours and Qwen2-MoE's → Mixtral's
_OURS = {theirs: ours for ours, theirs in MATRICES.items()}
_EXPERT = re.compile(r"(layers\.\d+\.mlp\.experts)\.(\d+)\.(\w+)\.weight")


def split(tensors: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    """Tensors by our names → by those of files, but for a ``model.`` before them. `family`: the model_type."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        path, experts, matrix = name.partition(".mlp.experts.")
        if not experts:
            found[name.replace(".mlp.gate.", ".block_sparse_moe.gate.") if family == "mixtral" else name] = tensor
            continue
        for number, one in enumerate(tensor.unbind()):
            if family == "mixtral":
                found[f"{path}.block_sparse_moe.experts.{number}.{MATRICES[matrix]}.weight"] = one
            else:
                found[f"{path}.mlp.experts.{number}.{matrix}.weight"] = one
    return found


def join(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `split`. Stacks that are not whole stay the single matrices that they are, so that who checks names
    them."""
    found: dict[str, Tensor] = {}
    stacks: dict[str, dict[int, tuple[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        ours = name.replace(".block_sparse_moe.", ".mlp.")
        match = _EXPERT.fullmatch(ours)
        if match is None:
            found[ours] = tensor
            continue
        path, number, matrix = match.groups()
        stacks.setdefault(f"{path}.{_OURS.get(matrix, matrix)}", {})[int(number)] = (name, tensor)
    for stack, parts in stacks.items():
        whole = sorted(parts) == list(range(len(parts)))
        if whole and len({(tensor.shape, tensor.dtype) for _, tensor in parts.values()}) == 1:
            found[stack] = torch.stack([parts[number][1] for number in range(len(parts))])
        else:
            found |= dict(parts.values())
    return found
