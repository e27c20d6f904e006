"""Run by test_interpreted_steps.py in a process of its own: the decoding kernels in Triton's interpreter, on a CPU.

In float16, since the interpreter has no bfloat16, beside the model's forward path in float32 and `choose` of the same
logits. What is a GPU's alone (graphs, early launches, tensor cores' rounding) is test_fused_decoding.py's.
"""

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import nn

from babyllama.data.streams.batches import Batch
from babyllama.infer import decoding, fused
from babyllama.infer.choosing import choose, numbers
from babyllama.infer.request import Request
from babyllama.infer.rows import Rows
from babyllama.infer.sampling import Sampling, used_by
from babyllama.model.cache import KVCache
from babyllama.model.config import ModelConfig
from babyllama.model.surgery import Words, dense_weight
from babyllama.model.transformer import Transformer, initialise
from babyllama.quant.calibrate import Ends, quantise
from babyllama.quant.linear import GroupedLinear
from babyllama.quant.rtn import Rtn

CPU = torch.device("cpu")
GroupedLinear.in_words = property(  # on a CPU it says None
    lambda it: Words(it.words, it.zeros, it.scales, it.order, it.bits, it.group_size))  # fmt: skip
torch.cuda.get_device_capability = lambda _device=None: (8, 0)


def config(**sizes) -> ModelConfig:
    shape = {"vocab_size": 67, "hidden_size": 64, "intermediate_size": 120, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
             "tie_word_embeddings": True, **sizes}  # fmt: skip
    return ModelConfig.model_validate(shape)


def sharp(shape: ModelConfig) -> Transformer:
    model = Transformer(shape)
    initialise(model, 1)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 6
        else:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval().requires_grad_(False)


def twins(shape: ModelConfig) -> tuple[Transformer, Transformer]:
    """The model in half precision, and the same weights in float32."""
    model, exact = sharp(shape).half(), sharp(shape)
    exact.load_state_dict(model.state_dict())
    return model, exact


def packed_twins(shape: ModelConfig, bits: int, group: int | None, head: bool, ordered: bool
                 ) -> tuple[Transformer, Transformer]:  # fmt: skip
    """The model in few bits, and its dense weights in float32."""
    model, exact = sharp(shape), sharp(shape)
    ends = Ends(head="rtn", embedding="rtn", bits=bits) if head else Ends()  # type: ignore[arg-type]
    tokens = torch.randint(67, (2, 25))
    method = Rtn(bits=bits, group_size=group, short_group=True)  # type: ignore[arg-type]
    quantise(model, [Batch(tokens[:, :-1], tokens[:, 1:])], method, ends)
    for number, linear in enumerate(m for m in model.modules() if isinstance(m, GroupedLinear)):
        if ordered:
            draw = torch.Generator().manual_seed(number)
            linear.order = torch.randperm(linear.in_features, generator=draw).int()
    model = model.half()
    for name, module in exact.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            same = model.get_submodule(name)
            weight = same.weight if isinstance(same, nn.Embedding) else dense_weight(same)
            module.weight.data.copy_(weight)
    return model, exact


@torch.inference_mode()
def beside(shape: ModelConfig, count: int, samplings: list[Sampling], steps: int = 3, made=None):
    """Each step's logits against float32's after the same tokens, each token against `choose` of the same logits."""
    model, exact = made or twins(shape)
    V, slots = shape.vocab_size - 3, 48
    rows = Rows(V, count, CPU)
    caches = [KVCache(shape, count, slots, CPU, dtype) for dtype in (torch.float16, torch.float32)]
    lengths = [1 + (row * 5) % 9 for row in range(count)]
    tokens = torch.randint(V, (count, 9), generator=torch.Generator().manual_seed(count))
    exact.hidden(tokens, cache=caches[1])
    caches[0].keys.copy_(caches[1].keys)
    caches[0].values.copy_(caches[1].values)
    for row, length in enumerate(lengths):
        request = Request(tokens[row, :length].tolist(), samplings[row % len(samplings)], seed=row)
        rows.place([row], [(request, [])])
        rows.token[row] = tokens[row, length - 1]
    rows.live.fill_(count)
    decoder, uses = decoding.Decoder(model, rows, caches[0], count), used_by(samplings)
    for _ in range(steps):
        token, position, counter = rows.token.clone(), rows.position.clone(), rows.counter.clone()
        chosen = decoder.launch(1, uses.drawn)[0]
        caches[1].reserve(int(position.max()) + 1)
        want = exact.lm_head(exact.hidden(token[:, None], position[:, None], cache=caches[1])[:, 0])[:, :V]
        error = float((decoder.logits - want).norm() / want.norm())
        assert error < 5e-3, error
        expected = choose(decoder.logits, rows.rules, numbers(rows.begin, counter), uses)
        assert chosen.tolist() == expected.tolist(), (chosen, expected)
        assert torch.equal(rows.position, position + 1) and torch.equal(rows.token, chosen)
    return decoder


GREEDY = Sampling(temperature=0)
CUTS = [Sampling(temperature=0.8), Sampling(temperature=1.3, top_k=5), Sampling(top_p=0.7),
        Sampling(temperature=0.9, top_k=20, top_p=0.8), Sampling(min_p=0.1), GREEDY,
        Sampling(temperature=2.0, top_k=7, top_p=0.5, min_p=0.05), Sampling(top_k=90, temperature=3.0),
        Sampling(top_k=60, top_p=0.9, temperature=3.0), Sampling(top_k=50, top_p=0.9, min_p=0.3),
        Sampling(top_p=0.99, min_p=0.01)]  # fmt: skip


def dense() -> None:
    for count in (1, 3, 17):
        beside(config(), count, [GREEDY])
    decoding.WIDE = range(64, 65)
    assert beside(config(), 1, [GREEDY]).plan.widen == 8
    decoding.LOOKED_AT, decoding.PROGRAMS = 4, 24  # two shares of 24 slots, of which a program holds four
    assert beside(config(num_key_value_heads=4), 3, [GREEDY]).splits == 2


@torch.inference_mode()
def drawn_beside(logits: torch.Tensor, samplings: list[Sampling], tiles: decoding.Tiles) -> None:
    """A drawn token of each row beside `choose`."""
    B, V = logits.shape
    rows, shape = Rows(V, B, CPU), config(vocab_size=V, hidden_size=16, num_hidden_layers=1)
    for row in range(B):
        rows.place([row], [(Request([1, 2], samplings[row % len(samplings)], seed=row), [])])
    rows.live.fill_(B)
    cache = KVCache(shape, B, 8, CPU, torch.float16)
    decoder = decoding.Decoder(MODELS.setdefault(V, sharp(shape).half()), rows, cache, B, tiles)
    blocks = nn.functional.pad(logits, (0, -V % tiles.predict), value=-torch.inf).unflatten(1, (-1, tiles.predict))
    best, place = blocks.max(-1)
    cold = 1 / rows.rules[:, 0].where(rows.rules[:, 0] > 0, 1)
    decoder.logits.copy_(logits)
    decoder.best.copy_(best)
    decoder.places.copy_(place + torch.arange(blocks.shape[1]) * tiles.predict)
    decoder.masses.copy_(((blocks - best[..., None]) * cold[:, None, None]).exp().sum(-1))
    chosen = torch.empty(1, B, dtype=torch.int64)
    draws, uses = numbers(rows.begin, rows.counter), used_by(samplings)
    decoder._draw(0, chosen)
    expected = choose(logits, rows.rules, draws, uses)
    assert chosen[0].tolist() == expected.tolist(), (tiles.predict, chosen, expected, rows.rules[:, :4])


MODELS: dict[int, Transformer] = {}


@torch.inference_mode()
def chosen_beside(logits: torch.Tensor, samplings: list[Sampling]) -> None:
    """`choose_of` of some rows, in another order, beside `Rows.choose`: tokens, and the state of all rows. The rows'
    numbers are a column of a table: not neighbours in memory."""
    B, V = len(logits), logits.shape[1] - 3  # as a head's, whose last rows are no tokens
    one, other = Rows(V, B + 2, CPU), Rows(V, B + 2, CPU)
    which = torch.stack([torch.arange(B).flip(0) + 1, torch.zeros(B, dtype=torch.int64)], 1)[:, 0]
    for rows in (one, other):
        for row in range(B + 2):
            rows.place([row], [(Request([1, 2], samplings[row % len(samplings)], seed=row), [3])])
    made = fused.choose_of(one, which, logits[:, :V]).tokens
    assert made.tolist() == other.choose(which, logits[:, :V], used_by(samplings)).tokens.tolist()
    for name in ("token", "position", "counter"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def draws() -> None:
    """Flat, steep and peaked rows, equal logits, logits that are not finite; every cut, every way to draw."""
    draw = torch.Generator().manual_seed(3)
    for V, candidates, width in ((300, 256, 0.5), (300, 4, 2.0), (700, 256, 6.0), (64, 256, 2.0)):
        decoding.CANDIDATES = candidates
        logits = torch.randn(len(CUTS), V, generator=draw) * width
        logits[1] = logits[1].round()
        logits[3, ::7] = logits[3].max()
        logits[4, 5] = 60.0
        drawn_beside(logits, CUTS, decoding.TILES[0 if V == 300 else 2])
    logits = torch.randn(3, 70, generator=draw)
    logits[0, 3], logits[1, 4], logits[2] = torch.nan, torch.inf, -torch.inf
    drawn_beside(logits, CUTS[:3], decoding.TILES[0])
    chosen_beside((torch.randn(len(CUTS), 200, generator=draw) * 3).half(), CUTS)


def packed() -> None:
    """Also sizes that fill no block of a program, and matrices too large to be copied or unpacked."""
    odd = {"hidden_size": 24, "intermediate_size": 54}
    for bits, group, head, ordered, count, laid, sizes in (
        (4, 32, True, True, 1, 1 << 28, {}),
        (8, 32, False, False, 3, 1 << 28, {}),
        (4, None, True, False, 1, 1 << 28, odd),
        (8, 16, False, True, 1, 0, odd),
        (4, 16, True, True, 5, 0, odd),
        (8, None, True, False, 40, 0, odd),
        (4, 16, True, True, 6, 1 << 28, odd),
    ):
        decoding.LAID, decoding.WIDE = laid, range(32, 33)  # a hidden size of 24 is not wide
        shape = config(**{"tie_word_embeddings": head, "hidden_size": 32, "intermediate_size": 56, **sizes},
                       num_hidden_layers=1)  # fmt: skip
        made = packed_twins(shape, bits, group, head, ordered)
        decoder = beside(shape, count, [GREEDY], steps=2, made=made)
        assert decoder.few == (count <= decoding.PACKED) and decoder.lays == (decoder.few and laid > 0)
        assert decoder.unpacks == (not decoder.few and laid > 0)


def reading() -> None:
    """Of packed models every kind, also sizes that fill no tile, and matrices that may be unpacked."""
    read_beside(config(), twins(config()))
    odd = {"hidden_size": 40, "num_attention_heads": 2, "intermediate_size": 152, "num_hidden_layers": 1}
    for bits, group, head, ordered, laid in ((4, 16, True, True, 0), (8, None, False, False, 1 << 28),
                                             (8, 16, True, True, 0)):  # fmt: skip
        decoding.LAID, shape = laid, config(**odd, tie_word_embeddings=head)
        read_beside(shape, packed_twins(shape, bits, group, head, ordered))


@torch.inference_mode()
def read_beside(shape: ModelConfig, made: tuple[Transformer, Transformer]) -> None:
    """Pieces of prompts of several rows, after what the rows hold, in one pass: logits, and what is in the cache."""
    starts, rows = [4, 0, 7], [3, 0, 2]
    (model, exact), V, draw = made, shape.vocab_size - 3, torch.Generator().manual_seed(1)
    caches = [KVCache(shape, 4, 32, CPU, dtype) for dtype in (torch.float16, torch.float32)]
    exact.hidden(torch.randint(V, (4, 8), generator=draw), cache=caches[1])
    caches[0].keys.copy_(caches[1].keys)
    caches[0].values.copy_(caches[1].values)
    pieces = [torch.randint(V, (n,), generator=draw).tolist() for n in (3, 6, 1)]
    fed = [(token, start + n, row) for piece, start, row in zip(pieces, starts, rows, strict=True)
           for n, token in enumerate(piece)]  # fmt: skip
    columns = torch.tensor(fed + fed[-1:] * 6).T.contiguous().unbind()
    decoder = decoding.Decoder(model, Rows(V, 4, CPU), caches[0], 16, decoding.tiles_for(16), fed=columns)
    found = decoder.read(torch.tensor([2, 8, 9]))
    for number, (piece, start, row) in enumerate(zip(pieces, starts, rows, strict=True)):
        end = start + len(piece)
        part = caches[1].part(torch.tensor([row]), end)
        want = exact(torch.tensor([piece]), torch.arange(start, end)[None], cache=part)[0, -1, :V]
        assert float((found[number] - want).norm() / want.norm()) < 5e-3
        for name in ("keys", "values"):
            one, other = (getattr(cache, name)[:, row, :, :end].float() for cache in caches)
            assert float((one - other).norm() / other.norm()) < 2e-3, (name, row)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        {"dense": dense, "draws": draws, "packed": packed, "reading": reading}[name]()
    print("as the forward path")
