"""Adapters of one base in one engine: each answers as if it were merged and alone."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path

import pytest
import torch
from small_run import CHATS, save_taught, small_tokenizer, taught_model

from babyllama.commands.serve import ServeRecipe, _named, _openers
from babyllama.errors import InputError
from babyllama.infer.engine import Engine
from babyllama.infer.request import Request
from babyllama.infer.sampling import Sampling
from babyllama.load import load, load_adapters
from babyllama.model.adapters import BaseLink, save_adapter
from babyllama.model.lora import Lora, attach
from babyllama.model.wrappers import LoraLinear
from babyllama.recipe import load_recipe
from babyllama.serve.models import Models
from babyllama.tokenizer.chat import render_chat

from .conftest import Mailbox

NAMES = ("base", "one", "two")
LORA = Lora(rank=4, targets=("q_proj", "down_proj"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """The taught model and two adapters of it that say something else."""
    root = tmp_path_factory.mktemp("adapters")
    base = save_taught(root / "base")
    for seed, name in enumerate(NAMES[1:]):
        model, draws = copy.deepcopy(taught_model()), torch.Generator().manual_seed(seed)
        attach(model, LORA, seed)
        for module in model.modules():
            if isinstance(module, LoraLinear):
                module.lora_B.data.normal_(generator=draws).mul_(0.3)
        (root / name).mkdir()
        save_adapter(model, root / name, LORA, BaseLink.to(base, "dense"))
        small_tokenizer().save(root / name)
    return root


def requests(adapter: str | None) -> list[Request]:
    asked = [render_chat(small_tokenizer(), [{"role": "user", "content": q}], True).tokens for q, _ in CHATS]
    draws = Sampling(temperature=0), Sampling(temperature=0.8)
    return [Request(prompt, draws[i % 2], 12, small_tokenizer().stop_ids, i, adapter=adapter)
            for i, prompt in enumerate(asked)]  # fmt: skip


def test_adapters_of_one_base_share_it(folders):
    recipe = load_recipe(ServeRecipe, None, [f"models=[{', '.join(str(folders / name) for name in NAMES)}]",
                                             "share_base=true", "device=cpu", "slots=64"])  # fmt: skip

    async def story() -> dict[str, list[list[int]]]:
        models = Models(_openers(_named(recipe), recipe), most=1)  # one worker, three names
        async with models.use("one") as served:
            assert sorted(models.loaded) == sorted(NAMES)
            workers = {models.loaded[name].worker for name in NAMES}
            assert workers == {served.worker}
            asked = [request for name in NAMES for request in requests(models.loaded[name].adapter)]
            mailbox = Mailbox()
            together = served.worker.ask(asked, mailbox)
            tokens = await mailbox.answers(len(asked))
            served.worker.give_up(together)
        await models.close()
        assert not models.loaded
        return {name: tokens[4 * i : 4 * i + 4] for i, name in enumerate(NAMES)}

    found = asyncio.run(story())
    for name in NAMES:
        alone = load(folders / name, torch.device("cpu"))  # merged
        engine = Engine(alone.model, alone.tokenizer.vocab_size)
        assert found[name] == [[t for e in engine.events(request) for t in e.tokens] for request in requests(None)]
    assert len({str(answers) for answers in found.values()}) == 3


def test_what_cannot_be_shared(folders, tmp_path):
    save_taught(tmp_path / "base")
    (tmp_path / "far").mkdir()
    model = copy.deepcopy(taught_model())
    attach(model, LORA, 0)
    save_adapter(model, tmp_path / "far", LORA, BaseLink.to(tmp_path / "base", "dense"))
    with pytest.raises(InputError, match="have not the same base"):
        load_adapters({"one": folders / "one", "far": tmp_path / "far"}, torch.device("cpu"))
    words = [f"models=[{folders / 'one'}, {tmp_path / 'far'}]", "share_base=true"]
    recipe = load_recipe(ServeRecipe, None, words)
    made = _openers(_named(recipe), recipe)  # two bases, so two groups
    assert made["one"].args[0].keys() == {"one"} and made["far"].args[0].keys() == {"far"}  # type: ignore[attr-defined]
