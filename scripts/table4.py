"""`make table4`: which reward teaches what. The rows of the paper's Table 4 in the embedded world, and their page.

    python scripts/table4.py [--seeds 0 1 …] [--rows ROW …] [--set KEY=VALUE …]     resumable
    python scripts/table4.py --page [--machine TEXT]                              the page alone, of what is finished

Each row and seed is a run of `unipic train tiny/table4-ROW` in RUNS/ROW-SEED. `unipic world judge` is started for the
rows with a judge, and ended after them. What rows begin with alike is run once for each seed. The page,
RESULTS/table4.md, is written anew after every row; what is not finished is said to be missing. A run that ends
otherwise than well ends this command with its exit code.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from pdtr_runs import Evaluation, Run, cell, change, change_cell, opened, same_start, table

from unipic.errors import BadInput, UnipicError
from unipic.evals.score import Estimate
from unipic.files import write_whole
from unipic.models.find import find_model
from unipic.train import resuming
from unipic.train.grpo import GrpoConfig
from unipic.train.pdtr import START, PdtrConfig, folder_name, part_config
from unipic.train.stages import read

ROWS = {
    "judge": "judge",
    "edit-reward": "EditReward",
    "geneval": "GenEval",
    "judge-geneval": "judge + GenEval",
    "edit-reward-geneval": "EditReward + GenEval",
}
MEASURES = {"text-to-image, strict": "geneval", "descriptions": "dense", "edits, of 10": "edit"}
UNIPIC = (sys.executable, "-m", "unipic.cli")
LISTENS = re.compile(r"listens at (http://\S+)")


# --- the runs ---------------------------------------------------------------------------------------------------------


def train(row: str, seed: int, run: Path, sets: Sequence[str]) -> None:
    """To its end. Raises SystemExit with the exit code of one that ends otherwise."""
    with judging() if "judge" in row else nullcontext() as address:
        own = [f"grpo.seed={seed}", *sets]
        own += [f"parts.0.rewards.judge.base_url={address}"] if address else []
        words = [word for each in own for word in ("--set", each)]
        code = subprocess.run([*UNIPIC, "train", f"tiny/table4-{row}", "--run-dir", run, *words]).returncode
    if code:
        print(f"{run} ended with {code}; the same command goes on", file=sys.stderr)
        sys.exit(code if code > 0 else 128 - code)


def take_over(runs: Path, row: str, seed: int, sets: Sequence[str]) -> None:
    """What other rows that are finished have begun with, too: the evaluation before, a part, and the evaluation after.

    Nothing is taken from a row with another start, other settings, or another first part.
    """
    config: PdtrConfig = read(f"tiny/table4-{row}", [f"grpo.seed={seed}", *sets])
    own, run = part_config(config, config.parts[0], config.grpo.model), runs / f"{row}-{seed}"
    weights = find_model(config.grpo.model).weights_hash()
    for other in finished(runs, list(ROWS), [seed]).values():
        theirs, first = PdtrConfig.model_validate_json(json.dumps(other.config)), other.parts[0].folder
        if (first / START).read_text() != weights or _start(theirs) != _start(config):
            continue
        alike = first.name == folder_name(config.parts[0], 1) and _finished(first, own)
        for name in ["eval-0", *([first.name, "eval-1"] if alike else [])]:
            if not (run / name).exists():
                taking = run / f".{name}"
                shutil.rmtree(taking, ignore_errors=True)
                shutil.copytree(other.folder / name, taking)
                taking.rename(run / name)


def _start(config: PdtrConfig) -> tuple[object, ...]:
    """What the evaluation before all parts depends on, but for the weights."""
    common = config.grpo
    return config.evaluate, common.model, common.mllm, common.device, common.dtype


def _finished(part: Path, config: GrpoConfig) -> bool:
    try:
        return resuming.finished(part, config, config.steps)
    except BadInput:  # it was begun with another recipe
        return False


@contextmanager
def judging() -> Iterator[str]:
    """The address of a judge of its own, at a free port, that ends with the block."""
    server = subprocess.Popen([*UNIPIC, "world", "judge", "--port", "0"], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None  # noqa: S101
    try:
        said = ""
        for line in server.stderr:
            said += line
            if found := LISTENS.search(line):
                break
        else:
            raise UnipicError("the world's judge did not start", said, "try `unipic world judge` by itself")
        threading.Thread(target=server.stderr.read, daemon=True).start()  # what it says later must not stop it
        yield found[1]
    finally:
        server.terminate()
        server.wait()


# --- the page ---------------------------------------------------------------------------------------------------------


def finished(runs: Path, rows: Sequence[str], seeds: Sequence[int]) -> dict[tuple[str, int], Run]:
    """Those of the runs that are finished."""
    found = {}
    for row in rows:
        for seed in seeds:
            run = runs / f"{row}-{seed}"
            if (run / "config.yaml").exists():  # which a run of PDTR gets at its end
                found[row, seed] = opened(run)
    return found


def seeds_in(runs: Path) -> set[int]:
    """The seeds of all runs that are there."""
    names = [re.fullmatch(rf"({'|'.join(ROWS)})-(\d+)", run.name) for run in runs.glob("*-*")]
    return {int(name[2]) for name in names if name}


def page(runs: Path, asked: Sequence[int], machine: str = "") -> str:
    """asked: seeds; those of other runs that are there are told as well. machine: in words, what it was run on."""
    seeds = sorted(seeds_in(runs) | set(asked))
    found = finished(runs, list(ROWS), seeds)
    if not found:
        raise BadInput(
            "no row of the table is finished", str(runs), "run `make table4`, which goes on where it stopped"
        )
    first = next(iter(found.values()))
    same_start(list(found.values()))
    before, judged = first.evaluations[0], first.evaluations[0].config
    missing = [f"{ROWS[row]} (seed {seed})" for row in ROWS for seed in seeds if (row, seed) not in found]
    lines = [["none", "", *told([before])]]
    for row, name in ROWS.items():
        own = [found[row, seed].evaluations[-1] for seed in seeds if (row, seed) in found]
        lines.append([name, str(len(own)), *(told(own) if own else ["not finished"] * len(MEASURES))])
    ends = sorted({run.finished() for run in found.values()})
    days = f"{ends[0]}" if len(ends) == 1 else f"{ends[0]} to {ends[-1]}"
    several = max(int(line[1] or 1) for line in lines) > 1
    cells = "Means over seeds, from the least to the greatest in parentheses." if several else "One seed."
    sections = [
        "# Table 4 in the embedded world",
        f"Which reward teaches what: `{first.config['grpo']['model']}`, reinforced with the rewards of each row of the "
        "paper's Table 4: for editing a judge or EditReward, for text-to-image GenEval. Here the judge is the world's, "
        "behind the protocol of a real one, EditReward the tiny one that learnt that judge's scores, and GenEval's "
        "detector the world's verifier, strict. The row without reinforcement is what every run evaluates first. All "
        f"models were asked the same {judged['n']} items of each part of the world's test split ([how](../evals.md)), "
        f"on {judged['device']} in {judged['dtype']}, {days}.{f' {machine}.' if machine else ''}",
        "The paper, of real pictures, from none to EditReward + GenEval: GenEval 0.83 → 0.89, GEdit 6.31 → 6.59, "
        "DPG 83.68 → 84.36.",
        f"{cells} In brackets: 95 % intervals.",
        table(["rewards", "seeds", *MEASURES], lines),
        f"**Not finished**: {', '.join(missing)}." if missing else "",
        "## Every run",
        table(["rewards", "seed", "steps", *MEASURES, "edits, novel"], details(found)),
        "## Changes of the same items",
        "From none to the last model, item by item from the same noise: the mean over groups, with its 95 % interval, "
        "which is mostly narrower than those of the scores.",
        table(["rewards", "seed", *MEASURES], changes(found)),
        'Made from the runs\' own files by `make table4`, which goes on where it stopped; `SEEDS="0 1 2"` adds seeds.',
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def told(models: Sequence[Evaluation]) -> list[str]:
    """Of each measure: a model's score with its interval; of several their mean and range."""
    cells = []
    for part in MEASURES.values():
        scores = [each.of(part) for each in models]
        known = [score.value for score in scores if score is not None]
        if len(models) == 1 or not known:
            cells.append(cell(scores[0]))
        else:
            cells.append(f"{statistics.fmean(known):.3g} ({min(known):.3g} to {max(known):.3g})")
    return cells


def details(found: dict[tuple[str, int], Run]) -> list[list[str]]:
    rows = []
    for (row, seed), run in found.items():
        steps = " + ".join(f"{part.config['steps']} {'/'.join(part.tasks)}" for part in run.parts)
        last = run.evaluations[-1]
        novel: Estimate | None = last.of("edit", half="novel")
        rows.append([ROWS[row], str(seed), steps, *told([last]), cell(novel)])
    return rows


def changes(found: dict[tuple[str, int], Run]) -> list[list[str]]:
    """Of each measure, as the last evaluation has it."""
    rows = []
    for (row, seed), run in found.items():
        before, after = run.evaluations[0], run.evaluations[-1]
        asked = [before.of(part) and after.of(part) for part in MEASURES.values()]
        both = [(before.of_each(part), after.of_each(part)) for part in MEASURES.values()]
        cells = [change_cell(change(*own)) if there else "–" for there, own in zip(asked, both, strict=True)]
        rows.append([ROWS[row], str(seed), *cells])
    return rows


def main(given: argparse.Namespace) -> None:
    for seed in [] if given.page else given.seeds:
        for row in given.rows:
            run = given.runs / f"{row}-{seed}"
            if not finished(given.runs, [row], [seed]):
                take_over(given.runs, row, seed, given.sets)
                train(row, seed, run, given.sets)
                write_whole(given.results / "table4.md", page(given.runs, given.seeds, given.machine).encode())
    write_whole(given.results / "table4.md", page(given.runs, given.seeds, given.machine).encode())
    print(given.results / "table4.md")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The paper's Table 4 in the embedded world.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--runs", type=Path, default=Path("runs/table4"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--machine", default="", help="in words, what this is run on, for the page")
    parser.add_argument("--page", action="store_true", help="train nothing")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the judge ends, too
    try:
        main(parser.parse_args())
    except UnipicError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
