"""What the machine can do: the peak rate behind MFU, and whether torch.compile can work.

Not here: any choice of a recipe's values.
"""

from __future__ import annotations

import shutil
import time

import torch

# Dense bf16 (fp16 on cards without bf16) tensor-core peaks in TFLOP/s, float32 accumulation, vendors' data sheets.
PEAK_TFLOPS: dict[str, float] = {
    "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "A800": 312, "L40S": 362, "L40": 181, "L4": 121,
    "A10": 125, "A6000": 155, "V100": 125, "T4": 65, "RTX 5090": 209, "RTX 4090": 165, "RTX 4080": 97,
    "RTX 4070 Ti": 80, "RTX 4070": 58, "RTX 4060 Ti": 44, "RTX 4060": 30, "RTX 3090": 71, "RTX 3080": 60,
    "RTX 3070": 41, "RTX 3060": 26, "RTX 2080 Ti": 54,
}  # fmt: skip


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that a perfect program would reach: the data sheet's for a known GPU, else a measured matrix product."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, tflops in PEAK_TFLOPS.items():
            if known in name:
                return tflops * 1e12
    return _measured_flops(device, dtype)


def _measured_flops(device: torch.device, dtype: torch.dtype, size: int = 1024, repeats: int = 4) -> float:
    a, b = (torch.randn(size, size, generator=torch.Generator().manual_seed(i)).to(device, dtype) for i in (0, 1))
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        for _ in range(repeats):
            b = (a @ b) / size**0.5
        b.sum().item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return repeats * 2 * size**3 / best


def device_name(device: torch.device) -> str:
    """For people: the card's name, or the number of CPU threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def can_compile(device: torch.device) -> bool:
    """torch.compile needs Triton on a GPU and a C++ compiler on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (7, 0)
    return any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++"))
