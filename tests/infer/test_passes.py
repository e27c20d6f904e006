"""Few tokens of prompts by the decoding kernels; their arithmetic without a GPU: interpreted_steps.py, `reading`."""

import pytest
import torch

from babyllama.infer.passes import MOST, Reader
from babyllama.infer.rows import Rows
from babyllama.infer.step import Recorder
from babyllama.model.cache import KVCache
from conftest import sharp_model, tiny_config
from infer.test_fused_decoding import config, packed_twins, twins

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_without_a_gpu_it_takes_nothing():
    model, cpu = sharp_model(tiny_config()), torch.device("cpu")
    reader = Reader(model, Rows(67, 1, cpu), KVCache(model.config, 1, 8, cpu, torch.float32), Recorder())
    reader.warm()
    assert reader([[1, 2]], [0], [0]) is None and not reader.graphs


class Counted(Recorder):
    """As on a GPU: a recorded call is not computed, but when it is replayed."""

    def __init__(self, works: bool) -> None:
        self.works, self.replayed = works, 0

    def __call__(self, call):
        return (self, call()) if self.works else None

    def replay(self) -> None:
        self.replayed += 1


@pytest.mark.parametrize(("works", "calls", "replayed"), [(True, 2, 3), (False, 4, 0)])
def test_what_comes_again_is_recorded_at_the_second_time_and_then_replayed(works, calls, replayed):
    record, graphs, made = Counted(works), {}, []
    for _ in range(4):
        assert record.repeated(graphs, "a", lambda: made.append(1) or "found") == "found"
    assert (len(made), record.replayed) == (calls, replayed)


@pytest.mark.gpu
@CUDA
@torch.inference_mode()
@pytest.mark.parametrize(("kv_heads", "packed"), [(4, None), (1, None), (2, (4, 32, True, False)),
                         (2, (4, 32, True, True)), (2, (8, None, False, True)), (2, (8, 16, True, False))])  # fmt: skip
def test_pieces_of_several_rows_are_read_as_by_the_forward_path(kv_heads, packed):
    """packed: bits, group, whether head and embedding too, whether in another order."""
    shape = config(kv_heads, tied=packed is None or packed[2], num_hidden_layers=2)
    model, exact = packed_twins(shape, *packed) if packed else twins(shape)
    device, V, draw = torch.device("cuda"), shape.vocab_size - 3, torch.Generator().manual_seed(1)
    caches = [KVCache(shape, 4, 64, device, dtype) for dtype in (torch.bfloat16, torch.float32)]
    exact.hidden(torch.randint(V, (4, 12), generator=draw).cuda(), cache=caches[1])
    before = caches[1].keys.clone(), caches[1].values.clone()
    reader = Reader(model, Rows(V, 4, device), caches[0], Recorder())
    for lengths, starts, rows in (((3, 6, 1), (4, 0, 7), (3, 0, 2)), ((3, 6, 2), (5, 1, 9), (0, 1, 3)),
                                  ((4, 5, 3), (2, 2, 2), (1, 2, 0)), ((40,), (0,), (2,))):  # fmt: skip
        for part, old in zip((caches[1].keys, caches[1].values), before, strict=True):
            part.copy_(old)
        caches[0].keys.copy_(caches[1].keys)
        caches[0].values.copy_(caches[1].values)
        pieces = [torch.randint(V, (n,), generator=draw).tolist() for n in lengths]
        found = reader(pieces, starts, rows)
        for number, (piece, start, row) in enumerate(zip(pieces, starts, rows, strict=True)):
            end = start + len(piece)
            places = torch.arange(start, end, device=device)[None]
            part = caches[1].part(torch.tensor([row], device=device), end)
            want = exact(torch.tensor([piece], device=device), places, cache=part)[0, -1, :V]
            assert found is not None and float((found[number] - want).norm() / want.norm()) < 2e-2
            for name in ("keys", "values"):
                one, other = (getattr(cache, name)[:, row, :, :end].float() for cache in caches)
                assert float((one - other).norm() / other.norm()) < 1e-2, (name, row)
    assert set(reader.graphs) == {(16, 4), (64, 1)} and reader.graphs[16, 4] is not None  # the third was a graph's
    assert reader([[1] * (MOST + 1)], [0], [0]) is None
