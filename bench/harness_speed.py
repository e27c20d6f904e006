"""C-Eval through lm-evaluation-harness: our model class beside its own `hf`, the same requests in the same process.

    python bench/harness_speed.py --model runs/seed/base --task_data exams --items 300

Requests are built from C-Eval's own files as the harness builds them (a blank before each letter), in parts of whole
subjects; each part is put to one model, then to the other, so that a busy machine is busy for both. Both must choose
the same option in every item. Appends a line for each number of shots to bench/results/harness_speed.jsonl.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from record import RESULTS, append, facts

from babyllama.commands.export import ExportRecipe
from babyllama.commands.export import main as export
from babyllama.evals.choices import Form
from babyllama.evals.tasks import TaskChoice
from babyllama.harness import Babyllama

FORM = Form("letter", intro="以下是中国关于{subject}的单项选择题，请选出其中的正确答案。\n\n", ask="\n答案：")


PART = 100  # items, to the end of a subject


def requests(task_data: Path, items: int, shots: int) -> list[list[Instance]]:
    """A request for each letter of each item, in parts."""
    choice = TaskChoice(name="ceval")
    held = choice.items(task_data)
    names, parts, group = choice.task.subjects or {}, list[list[Instance]](), None
    form = Form("letter", shots, intro=FORM.intro, ask=FORM.ask)
    for item in held.asked[:items]:  # whole subjects, as in the whole test
        if not parts or (item.group != group and len(parts[-1]) >= 4 * PART):
            parts.append([])
        group = item.group
        prompt = form.prompt(item, held.examples[group], names[group])
        parts[-1] += [Instance("loglikelihood", {}, (prompt, f" {letter}"), len(parts[-1])) for letter in "ABCD"]
    return parts


def timed(model: HFLM | Babyllama, asked: list[Instance]) -> tuple[float, float, list[float]]:
    """(seconds, seconds of processor time, log-likelihoods)."""
    started, used = time.perf_counter(), time.process_time()
    found = [nats for nats, _ in model.loglikelihood(asked, disable_tqdm=True)]
    return time.perf_counter() - started, time.process_time() - used, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--task_data", type=Path, required=True)
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 5])
    parser.add_argument("--batch", default="16", help="of hf")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        export(ExportRecipe(model=asked.model, to="hf", out=Path(folder) / "hf"))
        theirs = HFLM(pretrained=f"{folder}/hf", device=asked.device, dtype="float32", batch_size=asked.batch)
        mine = Babyllama(f"{folder}/hf", device=asked.device, precision="fp32")
        for shots in asked.shots:
            parts = requests(asked.task_data, asked.items, shots)
            timed(theirs, parts[0][:8]), timed(mine, parts[0][:8])
            both = [(timed(theirs, part), timed(mine, part)) for part in parts]
            (their_s, their_cpu_s, expected), (my_s, my_cpu_s, found) = (
                (sum(one[0] for one in runs), sum(one[1] for one in runs), [nats for one in runs for nats in one[2]])
                for runs in zip(*both, strict=True))  # fmt: skip
            rows = [torch.tensor(nats).view(-1, 4) for nats in (found, expected)]
            line = {"items": asked.items, "shots": shots, "context": mine.max_length, "cut": mine.cut,
                    "hf_seconds": round(their_s, 2), "our_seconds": round(my_s, 2),
                    "hf_cpu_seconds": round(their_cpu_s, 2), "our_cpu_seconds": round(my_cpu_s, 2),
                    "times_as_fast": round(their_s / my_s, 2), "by_cpu_time": round(their_cpu_s / my_cpu_s, 2),
                    "same_choice": int((rows[0].argmax(1) == rows[1].argmax(1)).sum()),
                    "largest_difference": (rows[0] - rows[1]).abs().max().item()}  # fmt: skip
            print(line, flush=True)
            append(RESULTS / "harness_speed.jsonl", {**facts(torch.device(asked.device)),
                                                     "threads": torch.get_num_threads(), **line})  # fmt: skip


if __name__ == "__main__":
    main()
