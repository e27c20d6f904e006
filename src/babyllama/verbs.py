"""Verbs → commands. Nothing heavy is imported until a verb runs, so ``--help`` answers at once.

Every verb takes an optional recipe (a YAML file, or the name of one that comes with the package) and any number of
settings, ``key.path=value`` or ``--key.path value``. In one file although it is long: it is the help of all verbs.
Not here: signals, streams and exit codes (cli.py), what a verb does (commands/).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer
from typer.exceptions import TyperException

from babyllama import __version__, interrupts
from babyllama.errors import InputError
from babyllama.index import VerbCommand, complete, write

if TYPE_CHECKING:
    from babyllama.recipe import Recipe

app = typer.Typer(
    invoke_without_command=True,
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

VERBS: dict[str, tuple[str, str | None]] = {}  # verb → its recipe's class in commands/VERB.py, what a bare word names


_WORDS = {  # what the words after a verb are: how they are shown, and said
    None: ("[RECIPE | RUN]", "a recipe (a file, or a name from babyllama recipes), or a run to continue"),
    "model": ("[MODEL]", "a run or a Hugging Face folder (or a recipe file, NAME.yaml)"),
    "target": ("[RUN | RECIPE]", "a train run or a train recipe"),
    "models": ("[MODEL]...", "runs or Hugging Face folders (or a recipe file, NAME.yaml)"),
    "url": ("[URL]", "a server's address, up to /v1 (or a recipe file, NAME.yaml)"),
    "tokenizers": ("[TOKENIZER]...", "runs, Hugging Face folders, tokenizer.model files (or a recipe file, NAME.yaml)"),
    "data": ("[PATH]", "a prepared folder, a run whose data is meant, or corpus files (or a recipe file, NAME.yaml)"),
    "runs": ("[RUN]...", "the runs, in order (or a recipe file, NAME.yaml)"),
}


def verb(kind: str, subject: str | None = None) -> Callable[[Callable[[], None]], None]:
    """Make a verb of a function's name and docstring."""

    def register(described: Callable[[], None]) -> None:
        name = described.__name__.replace("_", "-")
        VERBS[name] = (kind, subject)
        after = typer.Argument(None, metavar=_WORDS[subject][0], help=_WORDS[subject][1], autocompletion=complete)

        def command(
            words: list[str] | None = after,
            keys: Annotated[bool, typer.Option("--keys", help="List all keys with the values of this recipe.")] = False,
            config: Annotated[bool, typer.Option("--print-config", help="Print the whole recipe as YAML.")] = False,
        ) -> None:
            _run(name, list(words or []), keys, config)

        text = described.__doc__ or ""
        app.command(name, cls=VerbCommand, help=text, short_help=text.split(". ")[0].split("\n")[0].rstrip("."),
                    context_settings={"ignore_unknown_options": True})(command)  # fmt: skip

    return register


def _run(name: str, words: list[str], keys: bool, config: bool) -> None:
    """Read the verb's recipe and call its main, or show the recipe."""
    from babyllama.keys import describe
    from babyllama.recipe import dump_recipe, load_recipe, read_recipe
    from babyllama.words import understand

    kind = recipe_type(name)
    said = understand(kind, words, name, VERBS[name][1])
    if keys:
        print(describe(kind, read_recipe(kind, said.source, said.settings) if words else None))
        return
    recipe = load_recipe(kind, said.source, said.settings)
    if config:
        print(dump_recipe(recipe), end="")
        return
    interrupts.raise_from_now()
    _module(name).main(recipe)


@verb("QuickstartRecipe")
def quickstart() -> None:
    """All steps on the embedded corpus: tokenizer, prepare, pretrain, SFT, medical SFT, evaluate, report.

    \b
    About ten minutes on two CPU cores; a larger model on a GPU. Interrupt and repeat as you like.
      babyllama quickstart
      babyllama quickstart out=runs/mine
    """


@verb("TokenizerRecipe")
def tokenizer() -> None:
    """Make a tokenizer run: train your own byte-level BPE, or take ChatGLM2's vocabulary.

    \b
      babyllama tokenizer out=runs/tok source.kind=train source.vocab_size=16000 'source.corpora=[{path: my.jsonl}]'
      babyllama tokenizer out=runs/tok source.kind=chatglm2
      babyllama tokenizer out=runs/tok source.kind=chatglm2 source.path=tokenizer.model
    """


@verb("TokenizerReportRecipe", "tokenizers")
def tokenizer_report() -> None:
    """Compare vocabularies on texts: characters a token, scripts, dead pieces, what comes back; table and figure.

    \b
      babyllama tokenizer report runs/tok tokenizer.model
      babyllama tokenizer report runs/tok8k runs/tok16k 'corpora=[{path: news.jsonl}, {path: books/}]' out=tok.json
    """


@verb("PrepareRecipe")
def prepare() -> None:
    """Corpora → token shards (.bin) with a manifest. Local files, embedded corpora or hub corpora by name.

    \b
      babyllama prepare out=runs/corpus tokenizer=runs/tok 'corpora=[{path: data/*.jsonl.zst}]'
      babyllama prepare out=runs/corpus tokenizer=runs/tok 'corpora=[{name: idioms}, {name: wikipedia_cn}]'
      babyllama prepare out=runs/corpus tokenizer=runs/tok 'corpora=[{path: crawl/}]' clean=zh-web 'dedup=[exact, near]'
    """


@verb("DataStatsRecipe", "data")
def data_stats() -> None:
    """What is in a corpus: documents, lengths, scripts, duplicates, what the loss covers; chats by role, pairs.

    \b
      babyllama data stats runs/corpus
      babyllama data stats runs/sft out=stats.json               the data of a run, with its context
      babyllama data stats chats.jsonl tokenizer=runs/tok        files that are not prepared yet
    """


@verb("DataSampleRecipe", "data")
def data_sample() -> None:
    """Some documents of a corpus at random, as the model reads them, what the loss covers in colour.

    \b
      babyllama data sample runs/corpus count=10
      babyllama data sample runs/sft split=val seed=2 'corpora=[medical]' least=100 most=400
    """


@verb("DataShowRecipe", "data")
def data_show() -> None:
    """One document by its number, or one row of a training exactly as it is read; token by token with tokens=true.

    \b
      babyllama data show runs/corpus document=17 'corpora=[medical]' split=train
      babyllama data show runs/sft row=0 tokens=true
    """


@verb("TrainRecipe")
def train() -> None:
    """Pretrain or fine-tune. Killed or interrupted, the same command continues, bit for bit.

    \b
      babyllama train seed/pretrain
      babyllama train seed/sft init.path=runs/seed/base plan.epochs=2
      babyllama train my.yaml optimizer.lr=0.01 device=cpu
    """


@verb("PlanRecipe")
def plan() -> None:
    """Before training: which model, batch and length suit a card, the hours (or money) and a corpus.

    \b
    Without model it chooses one; with it, it says what that one needs. It ends with the command to paste.
      babyllama plan gpu='RTX 3060 12G' hours=8 corpus_tokens=300000000
      babyllama plan gpu=4090 money=20 price_per_hour=0.5 data=runs/corpus
      babyllama plan gpu=H100 model.preset=base-218m tokens=5000000000
      babyllama plan gpu='A100 40G' gpus=8 engine=fsdp model.depth=24 hours=24
      babyllama plan hours=2 data=runs/corpus out=plan.yaml      this machine; a recipe for babyllama train
    """


@verb("DoctorRecipe", "target")
def doctor() -> None:
    """Look at a run, or rehearse a train recipe, and name what is wrong. Exit code 1 when a fault was found.

    \b
    It reads the run's record and checkpoints and takes its first steps once more, in a temporary folder.
      babyllama doctor runs/base
      babyllama doctor my.yaml steps=20 device=cpu
      babyllama doctor seed/sft 'overrides=[optimizer.lr=0.01]' out=doctor.json
    """


@verb("ChatRecipe", "model")
def chat() -> None:
    """Talk to a run or to any Hugging Face LLaMA folder. Questions can be piped in, one a line.

    \b
      babyllama chat runs/quickstart/medical
      babyllama chat runs/sft sampling.temperature=0.7 sampling.top_p=0.9
    """


@verb("MergeRecipe", "model")
def merge() -> None:
    """An adapter and its base → one ordinary model. Not needed to use an adapter: every verb takes it as it is.

    \b
      babyllama merge runs/medical-lora out=runs/medical-merged
      babyllama merge my-peft-folder out=runs/merged precision=bf16
    """


@verb("RetokenizeRecipe", "model")
def retokenize() -> None:
    """A trained model → the same for another vocabulary: tokens in both keep their rows, others are means of old ones.

    \b
      babyllama retokenize runs/base tokenizer=runs/tok16k out=runs/base-16k
      babyllama train init=from init.path=runs/base-16k data.path=runs/corpus-16k out=runs/on plan.epochs=1
    """


@verb("ExportRecipe", "model")
def export() -> None:
    """A run → what other programs run: a GGUF file, a folder for Ollama or the hub. Needs: pip install -e '.[export]'

    \b
      babyllama export runs/sft
      babyllama export runs/sft type=Q8_0 out=sft.gguf
      babyllama export runs/sft-4bit                      GPTQ's codes as they are, nothing is rounded again
      babyllama export runs/medical-lora adapter=apart    a LoRA for the file of its base
      babyllama export runs/sft to=ollama                 then: ollama create sft -f sft-ollama/Modelfile
      babyllama export runs/sft to=hf push=me/sft licence=apache-2.0 dry_run=true
    """


@verb("VerifyRecipe", "model")
def verify() -> None:
    """Whether transformers, llama.cpp or a server give the same answers as this program. Exit code 1 when one does not.

    \b
      babyllama verify runs/sft against=transformers
      babyllama verify runs/sft 'against=[transformers, llama.cpp]'
      babyllama verify runs/sft against=sft-Q8_0.gguf tolerance=0.1 least=0.9
      babyllama verify runs/sft against=http://127.0.0.1:8000/v1
    """


@verb("QuantizeRecipe", "model")
def quantize() -> None:
    """A model in 8, 4, 3 or 2 bits a weight: GPTQ, AWQ or rounding, with what it costs in loss, size and speed.

    \b
      babyllama quantize runs/sft data=runs/sft-data out=runs/sft-4bit
      babyllama quantize runs/base data=runs/corpus out=runs/base-awq method.kind=awq method.bits=3
      babyllama quantize runs/base data=runs/corpus out=runs/sweep 'sweep=[{kind: rtn, bits: 4}, {kind: gptq, bits: 4}]'
    """


@verb("GenerateRecipe", "model")
def generate() -> None:
    """Continue a text.

    \b
      babyllama generate runs/base prompt=春天来了
      babyllama generate runs/base prompt=春天来了 samples=3 sampling.temperature=0.8
    """


@verb("ServeRecipe", "models")
def serve() -> None:
    """Models over HTTP, for any client that speaks OpenAI's protocol. Needs: pip install -e '.[serve]'

    \b
      babyllama serve runs/quickstart/medical
      babyllama serve runs/sft runs/sft-4bit port=8080 api_keys=keys.txt host=0.0.0.0
      babyllama serve 'models=[{path: runs/sft, name: chat}, {path: runs/medical-lora, name: doctor}]' loaded=1
    """


@verb("BenchServeRecipe", "url")
def bench_serve() -> None:
    """How fast a server answers: throughput, first token, time between events; any that speaks OpenAI's protocol.

    \b
      babyllama bench-serve clients=64 seconds=30
      babyllama bench-serve http://127.0.0.1:8080/v1 clients=8 max_tokens=64 out=figures.json
    """


@verb("EvaluateRecipe", "model")
def evaluate() -> None:
    """Loss, bits per byte and answers of a run, written to its evals/.

    \b
      babyllama evaluate runs/sft data=runs/sft-data
    """


@verb("LongContextRecipe", "model")
def longcontext() -> None:
    """Perplexity by context length, loss by position and a passkey test, for several RoPE scalings at once.

    \b
      babyllama longcontext runs/base data=runs/corpus 'laws=[linear, ntk, dynamic_ntk, yarn]' 'lengths=[512, 2048]'
      babyllama longcontext runs/base text=novel.txt 'against=[runs/base-yarn]'
    """


@verb("ReportRecipe", "runs")
def report() -> None:
    """One HTML page about a pipeline of runs: curves, samples, sizes, times; opens offline.

    \b
      babyllama report runs/base runs/sft out=report.html
    """


@verb("QualityRecipe")
def quality() -> None:
    """Train a small classifier of good and bad texts, for prepare's filter of that name.

    \b
      babyllama quality 'good=[{path: books/}]' 'bad=[{path: crawl/}]' out=quality.safetensors
    """


@verb("AuditRecipe", "runs")
def audit() -> None:
    """One HTML page about what prepare cleaned: the flow of documents by filter, histograms, samples.

    \b
      babyllama audit runs/corpus
      babyllama audit runs/corpus out=audit.html language=zh
    """


@verb("SynthesizeRecipe")
def synthesize() -> None:
    """Prompts → answers of a teacher, any OpenAI-compatible server, as chats to train on; goes on where it stopped.

    \b
      babyllama synthesize prompts=questions.txt out=data/synthetic url=http://127.0.0.1:8000/v1 model=large
    """


@verb("ArenaRecipe", "runs")
def arena() -> None:
    """Two or more models answer the same prompts; vote blindly on a page that opens offline; rank by the votes.

    \b
      babyllama arena runs/base-sft runs/medical prompts=questions.txt out=arena.html
      babyllama arena 'votes=[arena-votes.json]'
    """


@app.command(short_help="List the recipes that come with the package")
def recipes() -> None:
    """List the recipes that come with the package."""
    from rich.console import Console

    from babyllama.commands.table import table_of
    from babyllama.recipe import BUNDLED, bundled

    table = table_of(["recipe", "what it is"], [])
    for name in bundled():
        table.add_row(name, (BUNDLED / f"{name}.yaml").read_text("utf-8").split("\n", 1)[0].lstrip("# "))
    Console(highlight=False).print(table)


@app.command(short_help="List the corpora that are known by name")
def corpora() -> None:
    """List the corpora that are known by name: what they are good for, their size, licence and source."""
    from babyllama.data.sources.known import CORPORA

    made, hub, brought = "come with the package", "from the Hugging Face hub", "known, but you bring the files"
    groups: dict[str, list[str]] = {made: [], hub: [], brought: []}
    for name, corpus in CORPORA.items():
        taken = f", the first {corpus.most} of its files unless files=… says more" if corpus.most else ""
        size = f", about {corpus.size}" if corpus.size else ""
        groups[made if corpus.records else hub if corpus.files else brought].append(
            f"  {name}  ({corpus.kind}{size}{taken})\n      {corpus.about}\n      {corpus.licence}; {corpus.source}"
        )
    for group, entries in groups.items():
        print(f"{group}:", *entries, sep="\n", end="\n\n")
    print("Any other data set of the hub: 'corpora=[{path: hf://OWNER/NAME/data/*.parquet}]', of ModelScope ms://…")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"babyllama {__version__}")
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


def recipe_type(name: str) -> type[Recipe]:
    """The recipe of a verb; imports what the verb needs."""
    return getattr(_module(name), VERBS[name][0])


def _module(name: str) -> ModuleType:
    """commands/VERB.py"""
    return import_module(f"babyllama.commands.{name.replace('-', '_')}")


def joined(words: list[str]) -> list[str]:
    """A verb of two words as the one that it is: ``tokenizer report`` is ``tokenizer-report``; ``help`` as ``--help``.

    Raises:
        InputError: the first of two, and none that is a second.
    """
    if words[:1] == ["help"]:
        return [*joined(words[1:]), "--help"]
    both = "-".join(words[:2])
    if both in VERBS:
        return [both, *words[2:]]
    seconds = [name.replace("-", " ", 1) for name in VERBS if words and name.startswith(f"{words[0]}-")]
    if seconds and words[0] not in VERBS:
        raise InputError(f"{' '.join(words[:2])}: no such verb; there are {', '.join(seconds)}")
    return words


def call(words: list[str]) -> int:
    """Run the verb that `words` name; the exit code.

    Raises:
        InputError: what the user gave is wrong, unknown verbs included.
        KeyboardInterrupt: Ctrl-C.
    """
    for word in words:
        if any("\ud800" <= character <= "\udfff" for character in word):
            raise InputError(f"{ascii(word)[1:-1]}: not valid UTF-8; write it, or name the file, in UTF-8")
    try:
        code = app(joined(words), standalone_mode=False, prog_name="babyllama")
    except TyperException as error:
        raise InputError(str(error)) from None
    if code == interrupts.CODE:  # what typer makes of Ctrl-C
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


if __name__ == "__main__":  # make keys
    write({name: recipe_type(name) for name in VERBS})
