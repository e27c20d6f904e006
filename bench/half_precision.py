"""Do gradients depend on the number of micro-batches in bf16? Training in parts beside a start moved by a hair.

    python bench/half_precision.py runs/quickstart/corpus --rows 256 --context 512

60 AdamW steps of one model on the same batches, cut into 1, 2, 4 and 8 micro-batches, in bf16 and in float32. The ruler
is the same run from weights moved by one part in 10⁷ (`moved`): what that alone does to the last loss is chaos, not
rounding. Beside it the error of the first step's gradient against float64, for the embedding and for the rest. A run's
last loss is the mean over its last ten steps.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch

from babyllama.data.shards.shards import Prepared
from babyllama.data.streams.batches import Batch, DataRecipe, Stream
from babyllama.model.config import ModelChoice
from babyllama.model.transformer import Transformer, initialise
from babyllama.train.engines.precision import InHalf, LossModule
from babyllama.train.losses.objectives import NextToken


def gradients(model: Transformer, batch: Batch, parts: int, dtype: torch.dtype) -> float:
    """The mean loss of a batch; the gradients stay in the model's parameters."""
    inner = LossModule(model, NextToken())
    module = InHalf(inner, dtype) if dtype == torch.bfloat16 else inner
    model.zero_grad()
    each, weight = batch.tokens.shape[0] // parts, batch.tokens.numel()
    total = torch.zeros((), device=batch.tokens.device)
    for part in range(parts):
        rows = slice(part * each, (part + 1) * each)
        loss, _ = module(Batch(batch.tokens[rows], batch.targets[rows]))
        (loss / weight).backward()
        total += loss.detach() / weight
    return total.item()


def trained(start: Transformer, batches: list[Batch], parts: int, dtype: torch.dtype, moved: int = 0) -> float:
    model = copy.deepcopy(start)
    if moved:
        generator = torch.Generator(batches[0].tokens.device).manual_seed(moved)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1 + 1e-7 * torch.randn(weight.shape, generator=generator, device=weight.device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    losses = []
    for batch in batches:
        losses.append(gradients(model, batch, parts, dtype))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return sum(losses[-10:]) / 10


def errors(start: Transformer, batch: Batch, parts: int, dtype: torch.dtype) -> tuple[float, float]:
    """Relative error of the embedding's gradient and of all others, against float64 of the same weights and rows."""
    exact, found = copy.deepcopy(start).double(), copy.deepcopy(start)
    logits = exact(batch.tokens).flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, batch.targets.flatten()).backward()
    gradients(found, batch, parts, dtype)
    wrong, whole = [0.0, 0.0], [0.0, 0.0]
    for (name, right), grad in zip(exact.named_parameters(), found.parameters(), strict=True):
        assert right.grad is not None and grad.grad is not None
        which = int(not name.startswith("embed"))
        wrong[which] += (grad.grad.double() - right.grad).square().sum().item()
        whole[which] += right.grad.square().sum().item()
    return (wrong[0] / whole[0]) ** 0.5, (wrong[1] / whole[1]) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="a prepared corpus")
    parser.add_argument("--preset", default="seed")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--gradient_rows", type=int, default=32, help="of the comparison with float64")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    prepared = Prepared.open(args.corpus)
    stream = Stream(prepared, "train", DataRecipe(path=args.corpus, packing="stream"), args.context, 0)
    batches = [stream.batch(step * args.rows, args.rows).to(device) for step in range(args.steps)]
    model = Transformer(ModelChoice(preset=args.preset).build(prepared.manifest["vocab_size"]))
    initialise(model, 0)
    model.to(device)
    few = Batch(batches[0].tokens[: args.gradient_rows], batches[0].targets[: args.gradient_rows])
    for dtype in (torch.bfloat16, torch.float32):
        for parts in (1, 2, 4, 8):
            embedding, rest = errors(model, few, parts, dtype)
            print(f"{dtype} in {parts}: gradient error, embedding {embedding:.2e}, rest {rest:.2e}", flush=True)
        runs = ((1, 0), (8, 0), (1, 1), (1, 2), (2, 0), (4, 0), (1, 3), (1, 4))
        for parts, moved in runs if dtype == torch.bfloat16 else runs[:4]:
            loss = trained(model, batches, parts, dtype, moved)
            print(f"{dtype} in {parts}{f', moved ({moved})' if moved else ''}: loss {loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
