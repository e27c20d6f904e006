"""Verbs → commands. Nothing heavy is imported until a verb runs, so ``--help`` answers at once.

Every verb takes an optional recipe (a YAML file, or the name of one that comes with the package) and any number of
``key.path=value`` overrides. Not here: signals, streams and exit codes (cli.py), what a verb does (commands/).
"""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer
from typer.exceptions import TyperException

from babyllama import __version__, interrupts
from babyllama.errors import InputError

app = typer.Typer(
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train a small Chinese LLaMA from scratch, understand every step of it, and ship the result.\n\n"
    "A run is a directory; each verb reads runs and makes one. First steps:\n\n"
    "\b\n"
    "  babyllama quickstart                      all steps on an embedded corpus, CPU or GPU\n"
    "  babyllama train seed/pretrain --keys      what a verb's recipe can say\n"
    "  babyllama chat runs/quickstart/medical    talk to a trained run",
)

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RECIPE|RUN] [KEY=VALUE]...", help="A recipe (file or bundled name), then overrides."),
]
Keys = Annotated[bool, typer.Option("--keys", help="Print every key of the recipe with its default, and leave.")]


def _run(verb: str, kind: str, words: list[str] | None, keys: bool, positional: str | None = None) -> None:
    """Load the verb's recipe and call its main. `positional` names the key that a bare first word stands for."""
    from babyllama.recipe import describe, load_recipe

    command = import_module(f"babyllama.commands.{verb}")
    recipe_type = getattr(command, kind)
    words = list(words or [])
    source = words.pop(0) if words and "=" not in words[0] else None
    if keys:
        typer.echo(describe(recipe_type))
        return
    if source is not None and positional is not None and not source.endswith(".yaml"):
        words.insert(0, f"{positional}={source}")
        source = None
    recipe = load_recipe(recipe_type, source, words)
    interrupts.raise_from_now()
    command.main(recipe)


@app.command()
def quickstart(words: Words = None, keys: Keys = False) -> None:
    """All steps on the embedded corpus: tokenizer, prepare, pretrain, SFT, medical SFT, evaluate, report.

    \b
    About ten minutes on two CPU cores; a larger model on a GPU. Interrupt and repeat as you like.
      babyllama quickstart
      babyllama quickstart out=runs/mine
    """
    _run("quickstart", "QuickstartRecipe", words, keys)


@app.command()
def tokenizer(words: Words = None, keys: Keys = False) -> None:
    """Make a tokenizer run: train an own byte-level BPE, or take ChatGLM2's vocabulary.

    \b
      babyllama tokenizer out=runs/tok source.kind=train source.vocab_size=16000 'source.corpora=[{path: my.jsonl}]'
      babyllama tokenizer out=runs/tok source.kind=chatglm2
      babyllama tokenizer out=runs/tok source.kind=chatglm2 source.path=tokenizer.model
    """
    _run("tokenizer", "TokenizerRecipe", words, keys)


@app.command()
def prepare(words: Words = None, keys: Keys = False) -> None:
    """Corpora → token shards (.bin) with a manifest. Local files, embedded corpora or hub corpora by name.

    \b
      babyllama prepare out=runs/corpus tokenizer=runs/tok 'corpora=[{path: data/*.jsonl.zst}]'
      babyllama prepare out=runs/corpus tokenizer=runs/tok 'corpora=[{name: idioms}, {name: wikipedia_cn}]'
    """
    _run("prepare", "PrepareRecipe", words, keys)


@app.command()
def train(words: Words = None, keys: Keys = False) -> None:
    """Pretrain or fine-tune. Killed or interrupted, the same command continues, bit for bit.

    \b
      babyllama train seed/pretrain
      babyllama train seed/sft init.path=runs/seed/base plan.epochs=2
      babyllama train my.yaml optimizer.lr=0.01 device=cpu
    """
    _run("train", "TrainRecipe", words, keys)


@app.command()
def plan(words: Words = None, keys: Keys = False) -> None:
    """Before training: which model, batch and length suit a card, the hours (or money) and a corpus.

    \b
    Without model it chooses one; with it, it says what that one needs. It ends with the command to paste.
      babyllama plan gpu='RTX 3060 12G' hours=8 corpus_tokens=300000000
      babyllama plan gpu=4090 money=20 price_per_hour=0.5 data=runs/corpus
      babyllama plan gpu=H100 model.preset=base-218m tokens=5000000000
      babyllama plan gpu='A100 40G' gpus=8 engine=fsdp model.depth=24 hours=24
      babyllama plan hours=2 data=runs/corpus out=plan.yaml      this machine; a recipe for babyllama train
    """
    _run("plan", "PlanRecipe", words, keys)


@app.command()
def doctor(words: Words = None, keys: Keys = False) -> None:
    """Look at a run, or rehearse a train recipe, and name what is wrong. Exit code 1 when a fault was found.

    \b
    It reads the run's record and checkpoints and takes its first steps once more, in a temporary folder.
      babyllama doctor runs/base
      babyllama doctor my.yaml steps=20 device=cpu
      babyllama doctor seed/sft 'overrides=[optimizer.lr=0.01]' out=doctor.json
    """
    words = list(words or [])
    if words and "=" not in words[0]:
        words[0] = f"target={words[0]}"
    _run("doctor", "DoctorRecipe", words, keys)


@app.command()
def chat(words: Words = None, keys: Keys = False) -> None:
    """Talk to a run or to any Hugging Face LLaMA folder. Questions can be piped in, one a line.

    \b
      babyllama chat runs/quickstart/medical
      babyllama chat runs/sft sampling.temperature=0.7 sampling.top_p=0.9
    """
    _run("chat", "ChatRecipe", words, keys, positional="model")


@app.command()
def merge(words: Words = None, keys: Keys = False) -> None:
    """An adapter and its base → one ordinary model. Not needed to use an adapter: every verb takes it as it is.

    \b
      babyllama merge runs/medical-lora out=runs/medical-merged
      babyllama merge my-peft-folder out=runs/merged precision=bf16
    """
    _run("merge", "MergeRecipe", words, keys, positional="model")


@app.command()
def quantize(words: Words = None, keys: Keys = False) -> None:
    """A model in 8, 4, 3 or 2 bits a weight: GPTQ, AWQ or rounding, with what it costs in loss, size and speed.

    \b
      babyllama quantize runs/sft data=runs/sft-data out=runs/sft-4bit
      babyllama quantize runs/base data=runs/corpus out=runs/base-awq method.kind=awq method.bits=3
      babyllama quantize runs/base data=runs/corpus out=runs/sweep 'sweep=[{kind: rtn, bits: 4}, {kind: gptq, bits: 4}]'
    """
    _run("quantize", "QuantizeRecipe", words, keys, positional="model")


@app.command()
def generate(words: Words = None, keys: Keys = False) -> None:
    """Continue a text.

    \b
      babyllama generate runs/base prompt=春天来了
      babyllama generate runs/base prompt=春天来了 samples=3 sampling.temperature=0.8
    """
    _run("generate", "GenerateRecipe", words, keys, positional="model")


@app.command()
def evaluate(words: Words = None, keys: Keys = False) -> None:
    """Loss, bits per byte and answers of a run, written to its evals/.

    \b
      babyllama evaluate runs/sft data=runs/sft-data
    """
    _run("evaluate", "EvaluateRecipe", words, keys, positional="model")


@app.command()
def longcontext(words: Words = None, keys: Keys = False) -> None:
    """Perplexity by context length, loss by position and a passkey test, for several RoPE laws at once.

    \b
      babyllama longcontext runs/base data=runs/corpus 'laws=[linear, ntk, dynamic_ntk, yarn]' 'lengths=[512, 2048]'
      babyllama longcontext runs/base text=novel.txt 'against=[runs/base-yarn]'
    """
    _run("longcontext", "LongContextRecipe", words, keys, positional="model")


@app.command()
def report(words: Words = None, keys: Keys = False) -> None:
    """One HTML page about a pipeline of runs: curves, samples, sizes, times; opens offline.

    \b
      babyllama report 'runs=[runs/base, runs/sft]' out=report.html
    """
    _run("report", "ReportRecipe", words, keys)


@app.command()
def recipes() -> None:
    """List the recipes that come with the package."""
    from babyllama.recipe import BUNDLED

    for path in sorted(BUNDLED.rglob("*.yaml")):
        first = path.read_text("utf-8").split("\n", 1)[0].lstrip("# ")
        typer.echo(f"{path.relative_to(BUNDLED).with_suffix('').as_posix():35} {first}")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"babyllama {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def call(words: list[str]) -> int:
    """Run the verb that `words` name; the exit code.

    Raises:
        InputError: what the user gave is wrong, unknown verbs included.
        KeyboardInterrupt: Ctrl-C.
    """
    try:
        code = app(words, standalone_mode=False)
    except TyperException as error:
        raise InputError(str(error)) from None
    if code == interrupts.CODE:  # what typer makes of Ctrl-C
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0
