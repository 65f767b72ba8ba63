"""What a reward model learns from: edits that a checkpoint made, and others of all grades, with a judge's scores.

The paper scores edits of its own checkpoint alone (§3.2). A checkpoint that is nearly always right, or never, would
teach little, so that right targets, sources left as they are, spoilt targets and what other edits make can be mixed in.
The folder `data/` is as `data.scored` says. The same command goes on: a result that has its line is not judged again,
one that got no score is asked for anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field, model_validator
from tqdm import tqdm

from unipic import config as recipes
from unipic.config import Strict
from unipic.data.scored import TEST, TRAIN
from unipic.data.source import Example
from unipic.data.world import chosen
from unipic.errors import BadInput, TryLater, UnipicError
from unipic.evals.run import settings_of
from unipic.models.reward_model import FULL, OUTPUTS, Output
from unipic.pictures import save_png
from unipic.report import Page, Picture
from unipic.rewards.configs import RewardConfig, opened
from unipic.rewards.reward import Sample, WeightedSum
from unipic.system import UniPic
from unipic.train.batches import FolderConfig, WorldConfig
from unipic.train.checkpointing import locked
from unipic.train.disk import refusals
from unipic.train.lines import append_line, read_lines
from unipic.types import Request
from unipic.world.edits import Edit, another
from unipic.world.render import render

SHOWN = 8  # of each kind, in the report
HARMLESS = {"device", "dtype", "train.edits", "test.edits", "unscored"}  # what may change between calls
Share = Annotated[float, Field(ge=0)]
Source = Annotated[WorldConfig | FolderConfig, Field(discriminator="kind")]
Kind = Literal["sampled", "target", "source", "spoilt", "misled", "other"]
KINDS: tuple[Kind, ...] = ("sampled", "target", "source", "spoilt", "misled", "other")


class MixConfig(Strict):
    """Weights of what is judged. sampled: the checkpoint's edits. target: right ones. source: left as it was.

    spoilt: the target with noise, mixed with its source, or with a part of something else. misled: another edit of the
    same source, done right; of the world alone. other: the target of another source's edit.
    """

    sampled: Share = 1.0
    target: Share = 0.0
    source: Share = 0.0
    spoilt: Share = 0.0
    misled: Share = 0.0
    other: Share = 0.0

    @model_validator(mode="after")
    def something_is_made(self) -> MixConfig:
        if not sum(self.weights.values()):
            raise ValueError("nothing is made: give one of the kinds a weight above zero")
        return self

    @property
    def weights(self) -> dict[Kind, float]:
        return {kind: getattr(self, kind) for kind in KINDS}


class SplitConfig(Strict):
    """edits: sources with their instructions, drawn from `source`; may be raised later, and what is there stays."""

    edits: Annotated[int, Field(ge=1)]
    source: Source


class EditScoresConfig(Strict):
    """train, test: disjoint; without `test`, the stage that learns holds out sources of its own.

    results: of each edit. model: makes the sampled ones, with these settings or its own. judge: a reward for each
    score, as a share of ten. unscored: share of the results that may stay without one, where a judge declines. batch:
    edits at a time. resolution: side of a square as large as the largest picture.
    """

    stage: Literal["edit-scores"]
    model: str = "tiny"
    mllm: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    train: SplitConfig
    test: SplitConfig | None = None
    results: Annotated[int, Field(ge=1)] = 4
    mix: MixConfig = MixConfig()
    judge: Annotated[dict[Output, RewardConfig], Field(min_length=1)]
    unscored: Annotated[float, Field(ge=0, lt=1)] = 0.0
    resolution: Annotated[int, Field(ge=32)] = 512
    batch: Annotated[int, Field(ge=2)] = 16
    steps: Annotated[int, Field(ge=1)] | None = None
    guidance_scale: Annotated[float, Field(ge=1)] | None = None
    device: str = "auto"
    dtype: str = "auto"

    @model_validator(mode="after")
    def splits_are_disjoint(self) -> EditScoresConfig:
        if self.test is not None and _same_edits(self.train.source, self.test.source):
            raise ValueError("train and test draw from the same edits: give them different splits or folders")
        return self

    @model_validator(mode="after")
    def other_edits_are_known(self) -> EditScoresConfig:
        sources = [split.source for split in (self.train, self.test) if split is not None]
        if self.mix.misled and not all(isinstance(source, WorldConfig) for source in sources):
            raise ValueError("the right results of other edits are known in the world alone: set mix.misled to 0")
        return self


def _same_edits(a: WorldConfig | FolderConfig, b: WorldConfig | FolderConfig) -> bool:
    if isinstance(a, WorldConfig) and isinstance(b, WorldConfig):
        return a.split == b.split
    return isinstance(a, FolderConfig) and isinstance(b, FolderConfig) and Path(a.path) == Path(b.path)


@dataclass(frozen=True)
class Made:
    """A result to be judged. kind: how it came about."""

    id: str
    kind: Kind
    example: Example
    picture: Image.Image
    source_name: str
    name: str


def make_scores(config: EditScoresConfig, run: Path) -> Path:
    """Make, judge and write down what is still missing. Returns the folder of the data.

    Raises TryLater if the judge left some results without a score.
    """
    data = run / "data"
    if run.exists() and not run.is_dir():
        raise BadInput("a run's folder is wanted", str(run), "give another --run-dir")
    with refusals(run):
        (data / "pictures").mkdir(parents=True, exist_ok=True)
    with locked(run):
        if (run / "config.yaml").exists():
            recipes.check_same(run / "config.yaml", config, HARMLESS)
        elif any((data / name).exists() for name in (TRAIN, TEST)):
            raise BadInput("scores stand where the run's own would", str(data), "give another --run-dir")
        recipes.save(config, run / "config.yaml")
        maker = Maker(config, data)
        missing = sum(maker.split(name) for name in ("train", "test"))
        _report(config, data).write(run / "report.html")
    splits = [split for split in (config.train, config.test) if split is not None]
    if missing > config.unscored * config.results * sum(split.edits for split in splits):
        what = f"the judge left {missing} results without a score"
        mend = "run the same command again, which keeps what it has; or let some stay so: --set unscored=0.01"
        raise TryLater(what, str(data), mend)
    return data


class Maker:
    """Results and their scores, batch by batch; the model is opened when a result is first to be sampled."""

    def __init__(self, config: EditScoresConfig, data: Path) -> None:
        self.config, self.data = config, data
        self.judges: dict[Output, WeightedSum] = {name: opened({name: reward}) for name, reward in config.judge.items()}
        self.system: UniPic | None = None

    def split(self, name: Literal["train", "test"]) -> int:
        """Returns how many results have got no score."""
        split = self.config.train if name == "train" else self.config.test
        if split is None:
            return 0
        config, path, missing = self.config, self.data / f"{name}.jsonl", 0
        done, source = {line["id"] for line in read_lines(path)}, split.source.open(config.seed)
        turns = range(-(-split.edits // config.batch))
        for turn in tqdm(turns, desc=name, unit="batch", disable=None, leave=False):
            numbers = range(turn * config.batch, min((turn + 1) * config.batch, split.edits))
            if all(f"{name}-{n:06d}-{i}" in done for n in numbers for i in range(config.results)):
                continue
            draw = source.draw("edit", turn, config.batch, config.resolution)  # always whole: so are its pictures
            examples = [source.load(draw, i) for i in range(config.batch)]
            ids = {f"{name}-{n:06d}-{i}" for n in numbers for i in range(config.results)} - done
            missing += self.judged(self.results(name, turn, examples, ids), path)
        return missing

    def results(self, split: str, turn: int, examples: Sequence[Example], ids: Set[str]) -> list[Made]:
        """Those of a batch's edits that are asked for, each from random numbers of its own."""
        config, planned = self.config, list[tuple[int, str, Kind, np.random.Generator]]()
        of = getattr(config, split).source
        for place, _ in enumerate(examples):
            number = turn * config.batch + place
            rng = np.random.default_rng([config.seed, ("train", "test").index(split), number])
            for i in range(config.results):
                kind, id = chosen(rng, config.mix.weights), f"{split}-{number:06d}-{i}"
                own = np.random.default_rng(rng.integers(2**62))
                if id in ids:
                    planned.append((place, id, kind, own))
        sampled = self.sampled([(examples[place], rng) for place, _, kind, rng in planned if kind == "sampled"])
        rest, found = iter(sampled), []
        for place, id, kind, rng in planned:
            other = examples[(place + 1 + int(rng.integers(len(examples) - 1))) % len(examples)]
            picture = next(rest) if kind == "sampled" else _result(kind, examples[place], other, of, rng)
            stem = id.rpartition("-")[0]
            found.append(Made(id, kind, examples[place], picture, f"pictures/{stem}.png", f"pictures/{id}.png"))
        return found

    def sampled(self, asked: Sequence[tuple[Example, np.random.Generator]]) -> list[Image.Image]:
        if not asked:
            return []
        config = self.config
        if self.system is None:
            self.system = UniPic.from_pretrained(
                config.model, mllm=config.mllm, device=config.device, dtype=config.dtype
            )
        given = {"steps": config.steps, "guidance_scale": config.guidance_scale}
        settings = settings_of(self.system, {k: v for k, v in given.items() if v is not None})["edit"]
        requests = [
            Request(e.text, *e.picture.size, seed=int(rng.integers(2**62)), references=e.references, **settings)
            for e, rng in asked
        ]
        return self.system.run(requests, fast_batch=True)

    def judged(self, made: Sequence[Made], path: Path) -> int:
        """Write down pictures and scores; how many results got none."""
        samples = [Sample(m.example.text, m.picture, m.example.references[0], m.example.spec) for m in made]
        scores = {name: judge.score(samples).parts[name] for name, judge in self.judges.items()}
        missing = 0
        for i, one in enumerate(made):
            own = {name: _of_ten(name, value) for name, of in scores.items() if (value := of[i]) is not None}
            if len(own) < len(scores):
                missing += 1
                continue
            with refusals(self.data):
                if not (self.data / one.source_name).exists():
                    save_png(one.example.references[0], self.data / one.source_name)
                save_png(one.picture, self.data / one.name)
            line: dict[str, Any] = {"id": one.id, "source": one.source_name, "instruction": one.example.text}
            append_line(path, line | {"result": one.name, "made": one.kind, "scores": own})
        return missing


def _of_ten(name: str, value: float) -> float:
    score = round(FULL * value, 4)
    if not 0 <= score <= FULL:
        raise UnipicError(f"a judge gave {value:g}, not a share from 0 to 1", f"judge: {name}", "give another judge")
    return score


def _result(kind: Kind, example: Example, other: Example, of: Source, rng: np.random.Generator) -> Image.Image:
    if kind == "source":
        return example.references[0]
    if kind == "misled":
        return misled(example, of, rng)
    if kind == "other":
        return other.picture
    return spoilt(example, other, rng) if kind == "spoilt" else example.picture


def misled(example: Example, of: Source, rng: np.random.Generator) -> Image.Image:
    """What another instruction would have made of the source; the source, should there be no other."""
    assert isinstance(example.spec, Edit)  # noqa: S101  as the settings made sure
    assert isinstance(of, WorldConfig)  # noqa: S101
    edit = another(example.spec, of.split, rng)
    return example.references[0] if edit is None else render(edit.target)


def spoilt(example: Example, other: Example, rng: np.random.Generator) -> Image.Image:
    """The target under noise, shining through its source, or with a part of the source, another target or noise."""
    target, source, stray = (
        np.asarray(p, np.float64) for p in (example.picture, _fitted(example.references[0], example), other.picture)
    )
    noise = rng.normal(0, 1, target.shape)
    way = rng.integers(3)
    if way == 0:
        pixels = target + noise * rng.uniform(5, 80)
    elif way == 1:
        share = rng.uniform(0.1, 0.9)
        pixels = target * share + source * (1 - share)
    else:
        pixels = target.copy()
        rows, columns = (_span(rng, length) for length in target.shape[:2])
        of = (source, stray, 128 + 64 * noise)[rng.integers(3)]
        pixels[rows, columns] = of[rows, columns]
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _fitted(picture: Image.Image, example: Example) -> Image.Image:
    return picture if picture.size == example.picture.size else picture.resize(example.picture.size)


def _span(rng: np.random.Generator, length: int) -> slice:
    """Between a quarter and three quarters of a side."""
    size = int(rng.integers(length // 4, 3 * length // 4 + 1))
    start = int(rng.integers(length - size + 1))
    return slice(start, start + size)


def _report(config: EditScoresConfig, data: Path) -> Page:
    """How many there are of each kind, their scores, and the first of each."""
    page = Page(f"Scored edits: {data.parent.name}")
    names = [name for name in OUTPUTS if name in config.judge]
    for file in (TRAIN, TEST):
        lines = read_lines(data / file)
        kinds: Mapping[Kind, list[dict[str, Any]]] = {
            kind: own for kind in KINDS if (own := [line for line in lines if line["made"] == kind])
        }
        columns = ("", "results", *(f"{name}, mean" for name in names), *(f"{name}, deviation" for name in names))
        rows = [(kind, len(own), *_moments(own, names)) for kind, own in kinds.items()]
        if rows:
            page.table(file, columns, [*rows, ("all", len(lines), *_moments(lines, names))])
        shown = [(kind, [p for line in own[:SHOWN] for p in _shown(data, line)]) for kind, own in kinds.items()]
        if shown:
            page.pictures(f"{file}: the first of each kind", shown)
    return page.settings(config.model_dump(mode="json"))


def _moments(lines: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[float]:
    columns = [np.array([line["scores"].get(name, math.nan) for line in lines]) for name in names]
    return [float(column.mean()) for column in columns] + [float(column.std()) for column in columns]


def _shown(data: Path, line: Mapping[str, Any]) -> list[Picture]:
    with Image.open(data / line["source"]) as source, Image.open(data / line["result"]) as result:
        said = ", ".join(f"{name.replace('_', ' ')} {score:.1f}" for name, score in line["scores"].items())
        return [Picture(source.copy(), line["instruction"]), Picture(result.copy(), said)]
