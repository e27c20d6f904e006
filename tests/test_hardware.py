"""The table of cards: lookup by what people type, device names, rates that MFU is measured against."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from babyllama import hardware
from babyllama.data.streams.batches import Batch
from babyllama.errors import InputError
from babyllama.hardware import CARDS, Card, find_card, peak_flops, this_card
from babyllama.infer.engine import Engine
from babyllama.infer.sampling import Sampling
from babyllama.load import pick_device, pick_precision
from babyllama.model.config import extended
from babyllama.model.laws import DynamicNtkRope
from babyllama.train.validation import evaluate_loss
from conftest import sharp_model, tiny_config


@pytest.mark.parametrize(
    ("typed", "name", "memory"),
    [("RTX 3060", "RTX 3060", 12), ("3060 12G", "RTX 3060", 12), ("rtx3090", "RTX 3090", 24), ("4090", "RTX 4090", 24),
     ("GeForce RTX 4060 Ti 16GB", "RTX 4060 Ti", 16), ("NVIDIA A100-SXM4-40GB", "A100", 40), ("a100", "A100", 80),
     ("NVIDIA H100 80GB HBM3", "H100", 80), ("H100 PCIe", "H100 PCIe", 80), ("Tesla T4", "T4", 16),
     ("RTX A6000", "A6000", 48), ("l40s", "L40S", 48), ("4070ti", "RTX 4070 Ti", 12),
     ("4090D", "RTX 4090 D", 24), ("H20", "H20", 96),
     ("rtx 6000 ada", "RTX 6000 Ada", 48)],
)  # fmt: skip
def test_a_card_by_what_people_call_it(typed, name, memory):
    card = find_card(typed)
    assert (card.name, card.memory_gib) == (name, memory)


@pytest.mark.parametrize(
    ("typed", "near"),
    [("RTX 3066", "RTX 3060"), ("H10", "H100"), ("A101", "A100"), ("", "known: "), ("potato", "known")],
)
def test_an_unknown_card_is_one_line_with_its_neighbours(typed, near):
    with pytest.raises(InputError, match="gpu: no card") as fault:
        find_card(typed)
    assert near in str(fault.value) and "\n" not in str(fault.value)


def test_every_card_is_found_by_its_own_name():
    for card in CARDS:
        assert find_card(card.name) is card
        assert card.tflops > 0 and card.memory_gib >= 8 and card.bandwidth > 100 and card.link > 0


def test_a_longer_name_stands_before_the_shorter_one_in_it():
    names = [card.name for card in CARDS]
    for at, name in enumerate(names):
        assert not any(earlier in name for earlier in names[:at])


@pytest.mark.parametrize(
    ("reported", "tflops"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("NVIDIA L40S", 362),
     ("NVIDIA L4", 121), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A10", 125), ("NVIDIA RTX A6000", 155),
     ("NVIDIA GeForce RTX 3060", 26), ("NVIDIA GeForce RTX 4090 D", 147), ("NVIDIA H20", 148),
     ("NVIDIA RTX 6000 Ada Generation", 364), ("NVIDIA GeForce RTX 4070 Ti SUPER", 80), ("Tesla V100-SXM2-16GB", 125)],
)  # fmt: skip
def test_the_peak_of_a_reported_device(monkeypatch, reported, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: reported)
    assert peak_flops(torch.device("cuda"), torch.bfloat16) == tflops * 1e12


@pytest.mark.parametrize(
    "reported",
    ["NVIDIA RTX A1000", "NVIDIA RTX A1000 6GB Laptop GPU", "NVIDIA GeForce RTX 3060 Laptop GPU", "NVIDIA A10G",
     "NVIDIA H100 NVL", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "NVIDIA GH200 480GB", "NVIDIA T400", "Some GPU 9000"],
)  # fmt: skip
def test_a_card_that_is_not_in_the_table_has_no_peak(monkeypatch, reported):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: reported)
    assert peak_flops(torch.device("cuda"), torch.bfloat16) is peak_flops(torch.device("cuda"), torch.float32) is None


def test_float32_has_a_peak_of_its_own(monkeypatch):
    gpu, reported = torch.device("cuda"), ["NVIDIA A100-SXM4-80GB"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: reported[0])
    assert peak_flops(gpu, torch.float32) == 19.5e12
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert peak_flops(gpu, torch.float32) == 156e12  # TF32
    reported[0] = "Tesla T4"  # neither bf16 nor TF32
    assert peak_flops(gpu, torch.float32) == 8.1e12 and peak_flops(gpu, torch.float16) == 65e12
    assert set(hardware.FLOAT32) == {card.name for card in CARDS}
    assert all(hardware.FLOAT32[card.name] <= card.tflops for card in CARDS)
    assert peak_flops(torch.device("cpu"), torch.bfloat16) is None


def test_a_utilisation_above_one_is_none():
    assert hardware.utilisation(3e12, 12e12) == 0.25
    assert hardware.utilisation(3e12, None) is hardware.utilisation(21e12, 1e12) is None


def test_other_accelerators_by_their_names(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("xpu"))
    assert pick_device("xpu") == torch.device("xpu")
    with pytest.raises(InputError, match="device: mps is asked for, but PyTorch finds xpu; use device=cpu"):
        pick_device("mps")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    with pytest.raises(InputError, match="PyTorch finds no accelerator"):
        pick_device("npu")


def test_a_known_device_has_its_own_memory(monkeypatch):
    class Properties:
        total_memory = 40 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert this_card(torch.device("cuda")) == Card("A100", 312, 40, 2039, 300)


def test_a_cpu_is_measured():
    card = this_card(torch.device("cpu"))
    assert card.is_cpu and card.tflops > 1e-3 and card.memory_gib > 0.1 and card.bandwidth > 0.1
    assert not any(c.is_cpu for c in CARDS)


def test_an_unknown_gpu_is_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU 9000")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("P", (), {"total_memory": 6 * 2**30}))
    monkeypatch.setattr(
        hardware, "_measured_flops", lambda device, dtype, size=0: 7e12 if dtype == torch.float16 else 0
    )
    monkeypatch.setattr(hardware, "_measured_bandwidth", lambda device: 150.0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert this_card(torch.device("cuda")) == Card("Some GPU 9000", 7, 6, 150, bf16=False, float8=True)


@pytest.mark.parametrize(("capability", "hip", "able"), [
    ((9, 0), None, True), ((8, 9), None, True), ((12, 0), None, True), ((8, 6), None, False), ((9, 0), "7.0", False),
])  # fmt: skip
def test_which_devices_multiply_float8(monkeypatch, capability, hip, able):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert hardware.multiplies_float8(torch.device("cuda")) == able
    assert not hardware.multiplies_float8(torch.device("cpu"))


def test_the_tables_cards_with_float8_are_hoppers_and_adas_and_later():
    without = {card.name for card in CARDS if not card.float8}
    assert without == {"A100", "A800", "A10", "A6000", "V100", "T4", "RTX 3090", "RTX 3080", "RTX 3070", "RTX 3060",
                       "RTX 2080 Ti"}  # fmt: skip


@pytest.mark.parametrize(("rate", "precision"), [(2e9, "fp32"), (9e10, "fp32"), (4e11, "bf16")])
def test_a_cpu_is_fast_in_what_it_multiplies(monkeypatch, rate, precision):
    monkeypatch.setattr(hardware, "_measured_flops", lambda _, dtype: rate if dtype == torch.bfloat16 else 8e10)
    assert pick_precision("fast", torch.device("cpu")) == precision
    assert (
        pick_precision("auto", torch.device("cpu")) == "fp32" and pick_precision("bf16", torch.device("cpu")) == "bf16"
    )


class Memory(ctypes.Structure):
    """MEMORYSTATUSEX as Microsoft's documentation has it."""

    _fields_ = [("dwLength", ctypes.c_uint32), ("dwMemoryLoad", ctypes.c_uint32),
                *((name, ctypes.c_uint64) for name in (
                    "ullTotalPhys", "ullAvailPhys", "ullTotalPageFile", "ullAvailPageFile", "ullTotalVirtual",
                    "ullAvailVirtual", "ullAvailExtendedVirtual"))]  # fmt: skip


def test_memory_on_windows(monkeypatch):
    def tell(reference):
        found = Memory.from_buffer(reference._obj)
        assert found.dwLength == ctypes.sizeof(Memory) == ctypes.sizeof(reference._obj)
        found.ullTotalPhys, found.ullAvailPhys = 12345, 678

    windll = SimpleNamespace(kernel32=SimpleNamespace(GlobalMemoryStatusEx=tell))
    monkeypatch.setattr(ctypes, "windll", windll, raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    assert hardware.installed_bytes() == 12345


class WithoutFloat64(TorchDispatchMode):
    """As a device without it: no operation makes float64 of anything else."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        given = [x.dtype for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        wide = any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in tree_leaves(made))
        assert not wide or torch.float64 in given, f"{function} made float64"
        return made


def test_answers_and_losses_without_float64(monkeypatch):
    """Apple's GPUs have none: what is drawn is the same here, as no draw lies within 1e-7 of two tokens' border."""
    config = tiny_config()
    model = sharp_model(extended(config.model_copy(update={"max_position_embeddings": 16}), DynamicNtkRope(factor=4.0)))
    tokens = torch.arange(2, 34)[None]

    def found():
        drawn = Engine(model, 67).generate([[5, 6, 7]], Sampling(temperature=1.0, seed=3), 24, frozenset())
        return drawn, evaluate_loss(model, [Batch(tokens[:, :-1], tokens[:, 1:])]).loss

    drawn, loss = found()
    for module in ("infer.choosing", "train.validation", "model.rope"):
        monkeypatch.setattr(f"babyllama.{module}.finest", lambda device: torch.float32)
    with WithoutFloat64():
        again, close = found()
    assert again == drawn and close == pytest.approx(loss, rel=1e-6)


WATCHED = """
import subprocess, sys, time
from babyllama.hardware import memory_watched
mib = 2**20
with memory_watched(every=0.01) as most:
    before = most()
    held = bytearray(b"x") * (200 * mib)
    time.sleep(0.5)  # it looks a dozen times
    del held
    told = [most() - before, most() - before]
    code = f"held = bytearray(b'x') * {300 * mib}; print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    most()  # until it runs its own program a child is its parent once more
    time.sleep(0.2)
    told.append(most() - before)
    child.communicate(b"\\n")
print(*(bytes // mib for bytes in told))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="only Linux says")
def test_memory_counts_what_was_held_since_it_was_asked_last_and_children():
    """In a process of its own: what other tests left behind here is given back at any time."""
    told = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, check=True).stdout.split()
    held, after, child = map(int, told)
    assert 200 <= held < 260 and after < 60 and 300 <= child < 400
