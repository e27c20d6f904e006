"""README.md of a model's folder, in English and Chinese, from what its runs wrote down: data and their licences, steps
and figures, the recipes that repeat them. Not here: the weights, who may publish them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from babyllama.atomic import read_json, write_atomic
from babyllama.data.shards.shards import Prepared
from babyllama.errors import InputError
from babyllama.lineage import lineage
from babyllama.moved import leads
from babyllama.run import Run

Json = dict[str, Any]
FIGURES = {"validation_loss": "validation loss", "bits_per_byte": "bits per byte", "perplexity": "perplexity",
           "bits_per_weight": "bits per weight"}  # fmt: skip
NOBODY = "not stated"
BEST = "best"  # beside model/: the model of the lowest validation loss


class Step(NamedTuple):
    """One run of a model's history. corpora: label → as manifest.json has it; evaluations: what evals/ holds."""

    verb: str
    recipe: str
    summary: Json
    corpora: dict[str, Json]
    evaluations: list[Json]


def history(model: Path) -> list[Step]:
    """The runs that made a model, the first one first; of another program's folder none."""
    found: list[Step] = []
    for at, run in lineage(model):
        place, info, plain = run.path, run.info, run.plain_recipe
        data = [leads(place, plain[key]["path"]) for key in ("data", "replay") if isinstance(plain.get(key), dict)]
        corpora = {label: corpus for path in data for label, corpus in _corpora(path).items()}
        best = at.name == BEST
        evaluations = [read_json(file) for file in sorted(((at if best else place) / "evals").glob("*.json"))]
        text = (place / "recipe.yaml").read_text("utf-8").replace(str(Path.home()), "~")
        summary = of_best(run) if best else info["summary"]
        found.append(Step(info["verb"], text, summary, corpora, evaluations))
    return found[::-1]


def of_best(run: Run) -> Json:
    """A training's summary with the figures of the step that its best/ is of."""
    summary = run.info["summary"]
    step = summary.get("best_step")
    line = next((m for m in run.metrics() if m["kind"] == "validation" and m["step"] == step), {})
    seen = {"validation_loss": line.get("loss"), **{key: line.get(key) for key in ("bits_per_byte", "perplexity")}}
    return {key: value for key, value in summary.items() if key not in ("tokens", *FIGURES)} | seen


def _corpora(folder: Path) -> dict[str, Json]:
    try:
        return Prepared.open(folder).manifest["corpora"]
    except InputError:  # it is no longer there
        return {}


def write_cards(run: Run) -> None:
    """Of a training that is finished: README.md in model/, and in best/ where there is one."""
    for folder in (run.model, run.path / BEST):
        if folder.is_dir():
            write_card(folder, folder, run.path.resolve().name)


def write_card(folder: Path, model: Path, name: str, licence: str = "") -> None:
    """Write README.md into the folder of a model or an adapter; `model` is its run, or any folder of one."""
    config = next(file for file in (folder / "config.json", folder / "adapter_config.json") if file.is_file())
    write_atomic(folder / "README.md", card(read_json(config), history(model), name, licence))


def card(config: Json, steps: list[Step], name: str, licence: str = "") -> str:
    """The text.

    Args:
        config: config.json, or an adapter's adapter_config.json.
        licence: the model's, as the hub names it (apache-2.0); empty: other, and the table of its data's says why.
    """
    corpora = {label: corpus for step in steps for label, corpus in step.corpora.items()}
    own = config.get("model_type") == "babyllama"
    head = {"language": ["zh"], "license": licence or "other", "pipeline_tag": "text-generation",
            "library_name": "babyllama" if own else "peft" if "peft_type" in config else "transformers",
            "tags": ["babyllama", "llama" if own else config.get("model_type", "llama")]}  # fmt: skip
    if not licence:
        head |= {"license_name": "see-its-data", "license_link": "README.md"}
    front = "".join(f"{key}: {json.dumps(value)}\n" for key, value in head.items())
    parts = [_english(config, steps, corpora), _chinese(config, steps, corpora), _recipes(steps)]
    return "\n".join([f"---\n{front}---\n\n# {name}\n", *parts])


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *[[str(cell).replace("|", "\\|") for cell in row] for row in rows]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _shape(config: Json) -> list[Any]:
    return [config.get(key, "–") for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                                             "max_position_embeddings")]  # fmt: skip


def _data(corpora: dict[str, Json]) -> list[list[Any]]:
    return [[label, corpus["kind"], f"{corpus['splits'].get('train', {}).get('documents', 0):,}", corpus["licence"],
             corpus["source"].replace(str(Path.home()), "~")] for label, corpus in corpora.items()]  # fmt: skip


def _made(steps: list[Step]) -> list[list[Any]]:
    return [[i, step.verb, f"{step.summary.get('tokens', 0):,}" if "tokens" in step.summary else "–", _figures(step)]
            for i, step in enumerate(steps, 1)]  # fmt: skip


def _figures(step: Step) -> str:
    found = [f"{said} {step.summary[key]:.4g}" for key, said in FIGURES.items()
             if isinstance(step.summary.get(key), float)]  # fmt: skip
    for evaluation in step.evaluations:
        for label, figures in (evaluation.get("loss") or {}).items():
            bits, of = figures["bits_per_byte"], f"{label} ({evaluation.get('documents') or 'unknown'})"
            found.append(f"{of}: loss {figures['loss']:.4g}" if bits is None else f"{of}: {bits:.4g} bits per byte")
        for label, figures in (evaluation.get("answers") or {}).items():
            if figures["asked"]:
                found.append(f"{label}: F1 {figures['f1']:.3f} of {figures['asked']} answers")
    return "<br>".join(found) or "–"


def _tests(steps: list[Step]) -> list[list[Any]]:
    """Of the last run: a row for each test, with its interval, what guessing gives, and the verdict."""
    found = {name: test for evaluation in (steps[-1].evaluations if steps else [])
             for name, test in (evaluation.get("tasks") or {}).items() if test.get("items")}  # fmt: skip
    return [[name, test["items"], f"{test['accuracy']:.1%}", "–".join(f"{end:.0%}" for end in test["interval"]),
             f"{test['chance']:.0%}", test["verdict"]] for name, test in found.items()]  # fmt: skip


def _english(config: Json, steps: list[Step], corpora: dict[str, Json]) -> str:
    parts = ["A small LLaMA, trained with babyllama.\n"]
    if "hidden_size" in config:
        parts.append(_table(["vocabulary", "width", "layers", "heads", "context"], [_shape(config)]))
    data = _table(["corpus", "kind", "documents", "licence", "source"], _data(corpora))
    parts.append("## Data and licences\n\n" + (data if corpora else "Not recorded.\n"))
    if any(corpus["licence"] == NOBODY for corpus in corpora.values()):
        parts.append("The licence of a corpus is not stated: make sure of it before you publish the model.\n")
    parts.append("## How it was made\n\n" + (_table(["", "step", "tokens", "figures"], _made(steps))
                 if steps else "Not recorded.\n"))  # fmt: skip
    tests = _tests(steps)
    if tests:
        parts.append("## Tests\n\n" + _table(["test", "items", "right", "95 %", "guessing", "verdict"], tests))
    parts.append(f"""## Use

{_snippet(config)}
The chat template renders text of the roles system, user, assistant and tool, and raises an error for all else. A text
that a user types may hold `<|user|>` and the like: transformers takes it for the marker unless `split_special_tokens`
is on.
A text begins after the token called bos, as in training; rows are padded on the left, with a token that is not the end.

It is small: it says fluent things that are wrong. It is no doctor, lawyer or judge.
""")
    return "\n".join(parts)


def _chinese(config: Json, steps: list[Step], corpora: dict[str, Json]) -> str:
    parts = ["# 中文\n\n用 babyllama 训练的小型 LLaMA。\n"]
    if "hidden_size" in config:
        parts.append(_table(["词表", "宽度", "层数", "头数", "上下文"], [_shape(config)]))
    parts.append("## 数据与许可\n\n" + (_table(["语料", "种类", "文档数", "许可", "来源"], _data(corpora))
                 if corpora else "没有记录。\n"))  # fmt: skip
    if any(corpus["licence"] == NOBODY for corpus in corpora.values()):
        parts.append("有的语料没有说明许可：发布模型之前请先确认。\n")
    parts.append(
        "## 制作过程\n\n" + (_table(["", "步骤", "token 数", "数值"], _made(steps)) if steps else "没有记录。\n")
    )
    tests = _tests(steps)
    if tests:
        parts.append("## 测试\n\n" + _table(["测试", "题数", "正确", "95 % 区间", "随机猜测", "结论"], tests))
    parts.append("""## 使用

代码同上。对话模板只渲染 system、user、assistant、tool 四种角色的文本，其余一律报错。用户输入的文字里可能有
`<|user|>` 之类：除非打开 `split_special_tokens`，transformers 会把它当作标记。文本从名为 bos 的 token 之后开始，
与训练时相同；批次在左侧填充，填充 token 不是结束 token。

它很小：会流畅地说错话。它不是医生、律师，也不是法官。
""")
    return "\n".join(parts)


def _snippet(config: Json) -> str:
    if config.get("model_type") == "babyllama":
        return "Its weights are packed as only babyllama reads them: `babyllama chat FOLDER`.\n"
    if "peft_type" in config:
        return "An adapter: `peft.AutoPeftModelForCausalLM.from_pretrained(FOLDER)`, or `babyllama chat FOLDER`.\n"
    return """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER)
chat = [{"role": "user", "content": "你好"}]
ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**ids, max_new_tokens=50)[0, ids["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
```
"""


def _recipes(steps: list[Step]) -> str:
    """What repeats the model: every run's recipe, in order."""
    if not steps:
        return ""
    said = ["## Reproduce · 重现\n\nEach recipe is a file for `babyllama STEP FILE.yaml`, in this order. "
            "每份配方都可用 `babyllama STEP FILE.yaml` 运行，依次进行。\n"]  # fmt: skip
    said += [f"<details><summary>{i}. {step.verb}</summary>\n\n```yaml\n{step.recipe.rstrip()}\n```\n\n</details>\n"
             for i, step in enumerate(steps, 1)]  # fmt: skip
    return "\n".join(said)
