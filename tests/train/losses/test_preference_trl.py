"""The preference objectives against TRL's on the same two-layer model and the same batch: losses and gradients.

CONTRIBUTING.md says how to run this, in an environment that has `trl`.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from exported import need_trl, published, sharp, vocabulary

from babyllama.data.streams.batches import IGNORE, Batch
from babyllama.model.checkpoint import load_model
from babyllama.train.losses.answers import pairs, sums
from babyllama.train.losses.kto import Kto
from babyllama.train.losses.preference import Dpo, Hinge, Ipo, Orpo, SimPo

pytestmark = pytest.mark.slow
PAIRS = [("你好！", "你好，很高兴见到你。", "不知道"), ("The quick fox?", "jumps over", "the lazy dog sleeps"),
         ("一加一等于几？", "一加一等于二。", "一加一等于三，大概。")]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def library():
    need_trl()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The reference, and a model some way from it."""
    place = tmp_path_factory.mktemp("trl")
    tokenizer = vocabulary("own", place)
    model, generator = sharp(tokenizer.vocab_size, max_position_embeddings=256), torch.Generator().manual_seed(0)
    published(model, tokenizer, place / "reference")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    published(model, tokenizer, place / "model")
    return place / "model", place / "reference"


def settings(place, **more):
    return {"output_dir": str(place), "per_device_train_batch_size": 3, "report_to": [], "use_cpu": True, "bf16": False,
            "save_strategy": "no", **more}  # fmt: skip


def models(folders):
    from transformers import AutoModelForCausalLM

    return [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in folders]


def their_rows(kind):
    from datasets import Dataset

    said = [({"prompt": [{"role": "user", "content": q}]}, *({"role": "assistant", "content": a} for a in answers))
            for q, *answers in PAIRS]  # fmt: skip
    if kind == "pairs":
        return Dataset.from_list([{**q, "chosen": [a], "rejected": [b]} for q, a, b in said])
    return Dataset.from_list([{**q, "completion": [c], "label": c is a} for q, a, b in said for c in (a, b)])


def our_batch(rows, label):
    """TRL's padded rows as one packed row."""
    parts = [(row[row_mask], mask[row_mask]) for row, mask, row_mask in zip(*rows, strict=True)]
    tokens = torch.cat([row[:-1] for row, _ in parts])
    targets = torch.cat([torch.where(mask[1:].bool(), row[1:], IGNORE) for row, mask in parts])
    lengths = [len(row) - 1 for row, _ in parts]
    segments = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor(lengths))
    positions = torch.cat([torch.arange(n) for n in lengths])
    wide = torch.zeros(len(tokens), dtype=torch.int64)
    wide[: len(label)] = label
    return Batch(tokens[None], targets[None], positions[None], segments[None], extras={"label": wide[None]})


def compared(objective, theirs, hf, batch, folders, **extras):
    """Our loss and gradients beside theirs, on our model of the same weights."""
    ours = load_model(folders[0]).float().requires_grad_(True)
    reference = load_model(folders[1]).float()
    with torch.no_grad():
        known = sums(reference, batch)[0]
    batch = Batch(batch.tokens, batch.targets, batch.positions, batch.segments,
                  extras={**batch.extras, "reference": known, **extras})  # fmt: skip
    loss = objective(ours, batch)[0] / objective.weight(batch)
    loss.backward()
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-6)
    gradients = {name.removeprefix("model."): p.grad for name, p in hf.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - gradients[name]).norm() <= 1e-4 * gradients[name].norm() + 1e-7, name


@pytest.mark.parametrize("loss_type,more,objective", [
    ("sigmoid", {"beta": 0.1}, Dpo()), ("sigmoid_norm", {"beta": 5.0}, Dpo(beta=5, length_normalised=True)),
    ("hinge", {"beta": 0.1}, Hinge()), ("ipo", {"beta": 0.2}, Ipo(tau=0.2)),
    ("robust", {"beta": 0.3, "label_smoothing": 0.2}, Dpo(beta=0.3, label_smoothing=0.2, robust=True)),
])  # fmt: skip
def test_with_a_reference(folders, tmp_path, loss_type, more, objective):
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    model, reference = models(folders)
    trainer = DPOTrainer(model, reference, args=DPOConfig(**settings(tmp_path, loss_type=[loss_type], **more)),
                         train_dataset=their_rows("pairs"),
                         processing_class=AutoTokenizer.from_pretrained(folders[0]))  # fmt: skip
    (given,) = trainer.get_train_dataloader()
    model.eval()
    ids, mask, kept = given["input_ids"], given["completion_mask"], given["attention_mask"].bool()
    order = [i for pair in range(3) for i in (pair, pair + 3)]  # theirs: all better ones first
    batch = our_batch((ids[order], mask[order], kept[order]), torch.tensor([1, -1] * 3))
    compared(objective, trainer.compute_loss(model, given), model, batch, folders)


def test_kto(folders, tmp_path):
    from transformers import AutoTokenizer
    from trl import KTOConfig, KTOTrainer

    model, reference = models(folders)
    args = KTOConfig(**{**settings(tmp_path), "per_device_train_batch_size": 6}, beta=0.2, desirable_weight=1.1,
                     undesirable_weight=0.8)  # fmt: skip
    trainer = KTOTrainer(model, reference, args=args, train_dataset=their_rows("rated"),
                         processing_class=AutoTokenizer.from_pretrained(folders[0]))  # fmt: skip
    (given,) = trainer.get_train_dataloader()
    model.eval()
    ids, mask, kept = given["input_ids"], given["completion_mask"], given["attention_mask"].bool()
    label = torch.where(torch.as_tensor(given["label"]).bool(), 1, -1)
    batch = our_batch((ids, mask, kept), label)
    other = our_batch((given["KL_input_ids"], given["KL_completion_mask"], given["KL_attention_mask"].bool()), label)
    ours, known = load_model(folders[0]).float(), load_model(folders[1]).float()
    with torch.no_grad():
        z = max(0.0, 0.2 * (sums(ours, other)[0] - sums(known, other)[0])[0, : len(label)].mean().item())
    compared(Kto(beta=0.2, desirable=1.1, undesirable=0.8), trainer.compute_loss(model, given), model, batch, folders,
             drift=torch.full(batch.tokens.shape, z))  # fmt: skip


def test_without_a_reference(folders):
    """TRL's own functions of the mean log-probabilities; it takes ORPO's NLL over prompts too, so that part is ours."""
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (6, 14), generator=generator)
    mask = (torch.arange(14) >= torch.tensor([4, 4, 6, 6, 3, 3])[:, None]).long()
    kept = torch.arange(14) < torch.tensor([9, 14, 12, 10, 14, 7])[:, None]
    batch = our_batch((ids, mask, kept), torch.tensor([1, -1] * 3))
    found = pairs(load_model(folders[0]).float(), batch)
    mean = found.mean.detach()
    accelerator = SimpleNamespace(device="cpu")
    simpo, orpo = SimPo(beta=2.5, gamma=1.2), Orpo(odds=0.3)
    cpo = SimpleNamespace(alpha=0.0, loss_type="simpo", simpo_gamma=1.2, beta=2.5, label_smoothing=0.0,
                          accelerator=accelerator)  # fmt: skip
    theirs, *_ = CPOTrainer.cpo_loss(cpo, mean[:, 0], mean[:, 1])
    torch.testing.assert_close(simpo.losses(found)[0].detach(), theirs, atol=1e-5, rtol=1e-5)
    ratio, *_ = ORPOTrainer.odds_ratio_loss(SimpleNamespace(beta=0.3, accelerator=accelerator), mean[:, 0], mean[:, 1])
    torch.testing.assert_close(orpo.losses(found)[0].detach(), -mean[:, 0] - ratio, atol=1e-5, rtol=1e-5)
