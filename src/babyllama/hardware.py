"""What machines can do: the table of cards, the peak rate behind MFU, memory, and whether torch.compile can work.

In one file although it is long: the table of cards, and what is asked of it. Not here: any choice of a recipe's values,
any forecast (forecast.py).
"""

from __future__ import annotations

import difflib
import functools
import mmap
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from babyllama.amounts import amount
from babyllama.errors import InputError

# auto: a CUDA (or ROCm) GPU, else the CPU. Others are PyTorch's accelerators by their own names; only cuda and cpu were
# ever run here.
DeviceChoice = Annotated[
    Literal["auto", "cpu", "cuda", "mps", "xpu", "npu"],
    Field(description="where it computes; auto: a GPU where there is one"),
]


@dataclass(frozen=True)
class Card:
    """One GPU (or this CPU). `tflops`: dense products in the precision that training uses there.

    `bandwidth`: of its memory, GB/s. `link`: to its neighbour, one way, GB/s: NVLink or PCIe 4.0 × 16. `float8`: it
    has products of float8 numbers, twice as many a second.
    """

    name: str
    tflops: float
    memory_gib: float
    bandwidth: float
    link: float = 32
    bf16: bool = True
    float8: bool = False

    @property
    def is_cpu(self) -> bool:
        return self.name == "CPU"


# Dense bf16 (fp16 on cards without bf16) tensor-core peaks with float32 accumulation; from the vendors' data sheets. A
# card's name is the first that its device name contains as whole words, so longer names stand before the shorter ones
# in them.
CARDS: tuple[Card, ...] = (
    Card("H200", 989, 141, 4800, 450, float8=True), Card("H100 PCIe", 756, 80, 2000, float8=True),
    Card("H100", 989, 80, 3350, 450, float8=True), Card("H800", 989, 80, 3350, 200, float8=True),
    Card("H20", 148, 96, 4000, 450, float8=True), Card("A100", 312, 80, 2039, 300), Card("A800", 312, 80, 2039, 200),
    Card("L40S", 362, 48, 864, float8=True), Card("L40", 181, 48, 864, float8=True),
    Card("L20", 119, 48, 864, float8=True), Card("L4", 121, 24, 300, float8=True), Card("A10", 125, 24, 600),
    Card("RTX 6000 Ada", 364, 48, 960, float8=True), Card("A6000", 155, 48, 768),
    Card("V100", 125, 16, 900, 150, bf16=False), Card("T4", 65, 16, 320, 16, bf16=False),
    Card("RTX 5090", 209, 32, 1792, 64, float8=True), Card("RTX 5080", 112, 16, 960, 64, float8=True),
    Card("RTX 5070 Ti", 87, 16, 896, 64, float8=True), Card("RTX 4090 D", 147, 24, 1008, float8=True),
    Card("RTX 4090", 165, 24, 1008, float8=True),
    Card("RTX 4080", 97, 16, 717, float8=True), Card("RTX 4070 Ti", 80, 12, 504, float8=True),
    Card("RTX 4070", 58, 12, 504, float8=True), Card("RTX 4060 Ti", 44, 8, 288, 16, float8=True),
    Card("RTX 4060", 30, 8, 272, 16, float8=True), Card("RTX 3090", 71, 24, 936), Card("RTX 3080", 60, 10, 760),
    Card("RTX 3070", 41, 8, 448), Card("RTX 3060", 26, 12, 360), Card("RTX 2080 Ti", 54, 11, 616, 16, bf16=False),
)  # fmt: skip


# TFLOP/s in float32 without TF32, which PyTorch does not use unless it is told to; from the same data sheets.
FLOAT32: dict[str, float] = {
    "H200": 67, "H100 PCIe": 51, "H100": 67, "H800": 67, "H20": 44, "A100": 19.5, "A800": 19.5, "L40S": 91.6,
    "L40": 90.5, "L20": 59.8, "L4": 30.3, "A10": 31.2, "RTX 6000 Ada": 91.1, "A6000": 38.7, "V100": 15.7, "T4": 8.1,
    "RTX 5090": 104.8, "RTX 5080": 56.3, "RTX 5070 Ti": 43.9, "RTX 4090 D": 73.5, "RTX 4090": 82.6, "RTX 4080": 48.7,
    "RTX 4070 Ti": 40.1, "RTX 4070": 29.1, "RTX 4060 Ti": 22.1, "RTX 4060": 15.1, "RTX 3090": 35.6, "RTX 3080": 29.8,
    "RTX 3070": 20.3, "RTX 3060": 12.7, "RTX 2080 Ti": 13.4,
}  # fmt: skip
SLICES = ("Laptop", "Max-Q", "Mobile", "MIG", "NVL")  # parts or relatives of a card, with other peaks


def find_card(name: str) -> Card:
    """The card that people call so: ``RTX 3060 12G``, ``3090``, ``a100 40GB``; a size overrides the table's memory.

    Raises:
        InputError: no such card; names the nearest.
    """
    size = re.search(r"(?i)(\d+)\s*G(?:i?B)?\b", name)
    wanted = _plain(name.replace(size[0], "") if size else name)
    by_name = {_plain(card.name): card for card in CARDS}
    if wanted in by_name:
        return replace(by_name[wanted], memory_gib=float(size[1])) if size else by_name[wanted]
    near = [by_name[key].name for key in difflib.get_close_matches(wanted, by_name, n=4, cutoff=0.5)]
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(card.name for card in CARDS)}"
    raise InputError(f"gpu: no card {name!r} in the table; {hint} (or auto, cpu)")


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|tesla|rtx|sxm\d?|hbm\d?e?|[^a-z0-9]", "", name.lower())


def this_card(device: torch.device) -> Card:
    """The device that is here: its own memory; rates of the table, measured where the table does not know it."""
    if device.type == "cpu":
        tflops = _measured_flops(device, torch.float32) / 1e12
        return Card("CPU", tflops, installed_bytes() / 2**30, _measured_bandwidth(device), bf16=False)
    name, memory = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory / 2**30
    known = _known(name)
    if known is not None:
        return replace(known, memory_gib=memory)
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    tflops = _measured_flops(device, torch.bfloat16 if bf16 else torch.float16, 4096) / 1e12
    return Card(name, tflops, memory, _measured_bandwidth(device), bf16=bf16, float8=multiplies_float8(device))


def memory_of(device: torch.device) -> int:
    """Bytes that a process may use there at most: of a GPU its own, else the machine's."""
    return allowed_memory(device) if device.type == "cuda" else installed_bytes()


def installed_bytes() -> int:
    """Of this machine's memory."""
    if sys.platform == "win32":
        import ctypes

        status = (ctypes.c_uint64 * 8)(64)  # MEMORYSTATUSEX: its length, then all physical memory
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return status[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _known(device_name: str) -> Card | None:
    """Whole words only: an RTX A1000 is no A100."""
    if _has(device_name, *SLICES):
        return None
    return next((card for card in CARDS if _has(device_name, card.name)), None)


def _has(device_name: str, *words: str) -> bool:
    return any(re.search(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", device_name) for word in words)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s that a perfect program would reach: a known GPU's data sheet, a CPU's measured float32 product, else None.

    On a GPU float32 has a peak of its own; where PyTorch may use TF32 for it, half of bf16's.
    """
    if device.type == "cpu":
        return _measured_flops(device, dtype) if dtype == torch.float32 else None
    known = _known(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if known is None:
        return None
    if dtype != torch.float32:
        return known.tflops * 1e12
    fast = known.bf16 and torch.get_float32_matmul_precision() != "highest"
    return (known.tflops / 2 if fast else FLOAT32[known.name]) * 1e12


def utilisation(flops: float, peak: float | None) -> float | None:
    """MFU: FLOP/s over the peak. None where the peak is not known, or proves too low by being exceeded."""
    return None if peak is None or flops > peak else round(flops / peak, 4)


def power_draw(device: torch.device) -> float | None:
    """Watts of a GPU just now; None where it, or its driver, does not tell (it takes the package nvidia-ml-py)."""
    if device.type != "cuda":
        return None
    with suppress(Exception):  # of whatever kind: no training may end for want of this figure
        return round(torch.cuda.power_draw(device) / 1000, 1)
    return None


def bf16_is_faster(device: torch.device) -> bool:
    """Whether products in bf16 are clearly faster than in float32, which they are not where a CPU emulates them."""
    return _measured_flops(device, torch.bfloat16) > 1.5 * _measured_flops(device, torch.float32)


@functools.cache  # a process that trains many models asks once
def _measured_flops(device: torch.device, dtype: torch.dtype, largest: int = 1024, repeats: int = 4) -> float:
    """Of growing square matrices, until products take long: many CPUs multiply fp16 a hundred times as slowly."""
    best, size, seconds = 0.0, 128, 0.0
    while size <= largest and seconds < 0.05:
        a, b = (torch.randn(size, size, generator=torch.Generator().manual_seed(i)).to(device, dtype) for i in (0, 1))
        for _ in range(3):
            started = time.perf_counter()
            for _ in range(repeats):
                b = (a @ b) / size**0.5
            b.sum().item()  # waits for the device
            seconds = time.perf_counter() - started
            best = max(best, repeats * 2 * size**3 / seconds)
        size *= 2
    return best


def _measured_bandwidth(device: torch.device, mib: int = 128) -> float:
    """GB/s read plus written while a buffer is copied."""
    source = torch.ones(mib * 2**20 // 4, device=device)
    copy, best = torch.empty_like(source), float("inf")
    for _ in range(4):
        started = time.perf_counter()
        copy.copy_(source)
        copy[-1].item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * mib * 2**20 / best / 1e9


def allowed_memory(device: torch.device) -> int:
    """Bytes of a GPU that this process may use: a limit set on it counts."""
    index = torch.cuda.current_device() if device.index is None else device.index
    share = torch.cuda.get_per_process_memory_fraction(index)
    return int(share * torch.cuda.get_device_properties(index).total_memory)


@contextmanager
def memory_watched(every: float = 0.2) -> Iterator[Callable[[], int]]:
    """Inside, a function that gives the largest `memory_in_use` since it was called last.

    Args:
        every: seconds between two looks.
    """
    most, lock, ended = [0], threading.Lock(), threading.Event()

    def look() -> None:
        now = memory_in_use()
        with lock:
            most[0] = max(most[0], now)

    def taken() -> int:
        look()
        with lock:
            found, most[0] = most[0], 0
        return found

    def looking() -> None:
        while not ended.wait(every):
            look()

    thread = threading.Thread(target=looking, daemon=True)
    thread.start()
    try:
        yield taken
    finally:
        ended.set()
        thread.join()


def memory_in_use() -> int:
    """Bytes of the machine's memory that this process and its children hold; what they share counts in each of them.
    0 where the system has no /proc."""
    try:
        children = [pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    for pid in children:
        with suppress(OSError, IndexError, ValueError):  # it has ended meanwhile
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * mmap.PAGESIZE


def chunk_rows(memory_gib: float) -> int:
    """Rows of logits that the loss holds at a time: 1 GiB in bf16 with ChatGLM2's vocabulary, 2 on a large card.

    Fewer chunks add to the head's gradient fewer times; on a 24 GB card the memory is worth more.
    """
    return 16384 if memory_gib >= 40 else 8192


def finest(device: torch.device) -> torch.dtype:
    """What sums are kept in: float64, or float32 where there is no other (Apple's MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def device_name(device: torch.device) -> str:
    """For people: the card's name, the kind of another accelerator, or the number of CPU threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"CPU, {amount(torch.get_num_threads(), 'thread')}"


def ampere(device: torch.device) -> bool:
    """Whether a GPU's tensor cores are an Ampere's or later, for which kernels that multiply by them are written."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def multiplies_float8(device: torch.device) -> bool:
    """NVIDIA's cards have products of float8 numbers since the RTX 40 series and the H100."""
    return device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device) >= (8, 9)


def can_compile(device: torch.device) -> bool:
    """torch.compile needs Triton on a GPU and a C++ compiler on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (7, 0)
    return any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++"))
