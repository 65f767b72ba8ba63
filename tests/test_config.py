"""Recipes, `--set`, strict configurations: what is read, and the three lines for what is not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from unipic.config import Strict, apply_sets, check_same, difference, dump, read_recipe, recipe, resolve, save, text
from unipic.errors import BadInput, UnipicError


class Precision(Enum):
    FULL = "float32"
    HALF = "bfloat16"


class Optimizer(Strict):
    learning_rate: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0)
    clip: float | None = None


class Batch(Strict):
    size: int = Field(gt=0)
    accumulate: int = Field(1, ge=1)


class Folder(Strict):
    kind: Literal["folder"] = "folder"
    path: Path
    weight: float = 1.0


class World(Strict):
    kind: Literal["world"] = "world"
    seed: int = 0
    weight: float = 1.0


class Data(Strict):
    sources: tuple[Annotated[Folder | World, Field(discriminator="kind")], ...] = Field((), max_length=4)


class Run(Strict):
    stage: Literal["kontext"]
    steps: int = Field(gt=0)
    optimizer: Optimizer
    batch: Batch = Batch(size=4)
    data: Data = Data()
    precision: Precision = Precision.FULL
    resume: bool = False
    workers: Literal["auto"] | int = "auto"
    note: str = ""
    ema: float | None = None
    mix: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def check(self) -> Run:
        if self.ema is not None and self.batch.accumulate > 1:
            raise ValueError("ema and accumulate exclude one another")
        return self


class Distill(Strict):
    stage: Literal["pdtr"]
    steps: int
    rewards: tuple[str, ...] = ()


STAGES: TypeAdapter[Run | Distill] = TypeAdapter(Annotated[Run | Distill, Field(discriminator="stage")])
RECIPE = """\
stage: kontext
steps: 20
optimizer:
  learning_rate: 1e-4
  betas: [0.9, 0.95]
batch: {size: 8}
data:
  sources:
  - {kind: folder, path: pictures}
  - {kind: world, seed: 3, weight: 2}
"""


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Recipes as if packaged."""
    folder = tmp_path / "recipes"
    for name in ("tiny/kontext", "tiny/pdtr", "paper/pdtr"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(RECIPE)
    monkeypatch.setattr(recipe, "RECIPES", folder)
    return folder


def raw() -> dict[str, Any]:
    read: dict[str, Any] = text.read(RECIPE, "here")
    return read


def refused(call: Callable[[], object], *words: str) -> str:
    with pytest.raises(BadInput) as error:
        call()
    message = str(error.value)
    assert 2 <= len(message.splitlines()) <= 3, message
    assert all(len(line) <= 250 for line in message.splitlines())
    for word in words:
        assert word in message, message
    assert error.value.exit_code == 2
    return message


# --- YAML


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("1.5e+3", 1500.0),
        ("3", 3),
        ("+3", 3),
        ("010", 10),
        ("0x1f", 31),
        ("0o17", 15),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("'1e-4'", "1e-4"),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("n", "n"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("2026-01-02", "2026-01-02"),
        ("=", "="),
        ("[a, 1, [no]]", ["a", 1, ["no"]]),
        ("{on: no, 1: 2, true: 3}", {"on": "no", "1": 2, "true": 3}),
        ("{<<: {a: 1}}", {"<<": {"a": 1}}),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
        ('"\\u00e9\\n"', "é\n"),
    ],
)
def test_yaml_is_read_as_1_2_has_it(written: str, value: object) -> None:
    got = text.read(written, "here")
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is empty"]),
        (b"# nothing\n", ["is empty"]),
        (b"- a\n- b\n", ["a map of keys is wanted", "a list"]),
        (b"just words", ["a map of keys is wanted", "the text 'just words'"]),
        (b"a: 1\nb: 2\na: 3\n", ['the key "a" stands there twice', "line 3, column 1"]),
        (b"a:\n  b: 1\n  'b': 2\n", ['the key "b" stands there twice', "line 3, column 3"]),
        (b"1: a\n'1': b\n", ['the key "1"', "line 2"]),
        (b"a: 1\nb: !!python/object/apply:os.system [ls]\n", ["!!python/object/apply:os.system", "line 2, column 4"]),
        (b"a: !!python/name:os.system x\n", ["!!python/name:os.system"]),
        (b"!!python/name:os.system x: 1\n", ["a key is not plain text"]),
        (b"a: !!binary aGk=\n", ["!!binary"]),
        (b"a: !!set {b}\n", ["!!set"]),
        (b"a: !mine 3\n", ["the tag !mine"]),
        (b"a: !!int seven\n", ["'seven' is no int"]),
        (b"a: !!bool maybe\n", ["'maybe' is no bool"]),
        (b"a: " + b"9" * 5000, ["is no int"]),
        (b"a: &x 1\nb: *x\n", ["anchors and aliases", "line 1, column 4", "base:"]),
        (b"a: *x\n", ["anchors and aliases"]),
        (b"&x a: 1\n", ["anchors and aliases"]),
        (b"a: &x [*x]\n", ["anchors and aliases"]),
        (b"[a, b]: 1\n", ["a key is not plain text"]),
        (b"a:\n\tb: 1\n", ["not YAML", "line 2, column 1", "indent with spaces"]),
        (b"a:\n  - b\n\t- c\n", ["line 3", "indent with spaces"]),
        (b"a: 1\nb: [1, 2\nc: 3\n", ["not YAML", "line 3"]),
        (b"a: b: c\n", ["not YAML", "line 1, column 5"]),
        (b"a: 'open", ["not YAML"]),
        (b"a: 1\n---\nb: 2\n", ["another document", "line 2"]),
        (b"%YAML 3.0\n---\na: 1\n", ["not YAML"]),
        (b"a: 1\nb: \xff\xfe\n", ["not UTF-8", "line 2"]),
        ("a: é".encode("utf-16"), ["not UTF-8"]),
        (b"a: 1\nb: x\x00y\n", ["not text", "line 2, column 5"]),
        (b'a: "\\ud800"\n', ["is no str", "line 1, column 4"]),
        (b"a: 1\n#" + b"x" * 2**20, ["larger than 1 MiB"]),
        (b"a: [" + b"1," * 10_000 + b"1]\n", ["more than a recipe holds", "10,000 values"]),
        (b"a: " + b"[" * 300_000, ["more than a recipe holds", "32 levels"]),
        (b"- " * 300_000, ["more than a recipe holds"]),
        (b"{a: " * 100_000, ["more than a recipe holds"]),
        (b"? " * 100_000, ["more than a recipe holds"]),
    ],
)
def test_bad_yaml(content: bytes, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    start = time.process_time()
    refused(lambda: read_recipe(str(path)), "mine.yaml", *words)
    assert time.process_time() - start < 5


def test_an_alias_bomb_is_not_expanded(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    refused(lambda: read_recipe(str(tmp_path / "bomb.yaml")), "anchors and aliases")


# --- recipes


def test_packaged_names_and_paths(packaged: Path, tmp_path: Path) -> None:
    content, where = read_recipe("tiny/kontext")
    assert (content["steps"], where) == (20, "recipe tiny/kontext")
    (tmp_path / "mine.yml").write_text("\ufeff" + RECIPE)
    assert read_recipe(str(tmp_path / "mine.yml")) == (content, str(tmp_path / "mine.yml"))


def test_a_path_is_relative_to_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("a: 1")
    monkeypatch.chdir(tmp_path)
    assert read_recipe("mine.yaml") == ({"a": 1}, "mine.yaml")


def test_every_packaged_recipe_is_read() -> None:
    for name in recipe.recipes():
        content, where = read_recipe(name)
        assert content, name
        assert where.startswith(f"recipe {name}")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tiny/kontex", ["did you mean tiny/kontext"]),
        ("kontext", ["did you mean tiny/kontext"]),
        ("pdtr", ["tiny/pdtr", "paper/pdtr"]),
        ("", ["give a packaged name"]),
        ("../recipes/tiny/kontext", ["no such recipe"]),
        ("nowhere.yaml", ["no such file"]),
        ("x" * 300 + ".yaml", ["no file's name"]),
        ("a\0b.yaml", []),
        ("~nobody-at-all/x.yaml", []),
        ("\udcff.yaml", ["no such file"]),
    ],
)
def test_no_such_recipe(name: str, words: list[str], packaged: Path) -> None:
    refused(lambda: read_recipe(name), *words)


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    refused(lambda: read_recipe(str(tmp_path / "folder.yaml")), "a folder stands where a recipe is needed")
    os.mkfifo(tmp_path / "pipe.yaml")
    refused(lambda: read_recipe(str(tmp_path / "pipe.yaml")), "no such file")
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    refused(lambda: read_recipe(str(tmp_path / "loop.yaml")))


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.yaml"
    path.write_text("a: 1")

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)  # who runs as root may read any file
    refused(lambda: read_recipe(str(path)), "Permission denied", "secret.yaml")


def test_a_base_lies_below(packaged: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: tiny/kontext\nsteps: 5\noptimizer: {betas: [0.5, 0.6]}\n")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "top.yaml").write_text("batch: {accumulate: 2}\nbase: ../mine.yaml\n")
    content, where = read_recipe(str(tmp_path / "deeper" / "top.yaml"))
    expected = raw() | {"steps": 5, "batch": {"size": 8, "accumulate": 2}}
    expected["optimizer"]["betas"] = [0.5, 0.6]
    assert content == expected
    assert where.endswith("mine.yaml on recipe tiny/kontext")
    assert where.index("top.yaml") < where.index("mine.yaml")


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("mine.yaml", ["lies under itself"]),
        ("other.yaml", ["lies under itself", "other.yaml"]),
        ("[tiny/kontext]", ["a list"]),
        ("", ["null"]),
        ("tiny/kontex", ["mine.yaml: base:", "did you mean tiny/kontext"]),
        ("nowhere.yaml", ["mine.yaml: base:", "no such file"]),
    ],
)
def test_a_bad_base(base: str, words: list[str], packaged: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"base: {base}\n")
    (tmp_path / "other.yaml").write_text("base: ./mine.yaml\n")
    refused(lambda: read_recipe(str(tmp_path / "mine.yaml")), *words)


def test_bases_have_an_end(tmp_path: Path) -> None:
    for i in range(10):
        (tmp_path / f"{i}.yaml").write_text(f"base: {i - 1}.yaml\nn{i}: {i}" if i else "a: 1")
    assert len(read_recipe(str(tmp_path / "8.yaml"))[0]) == 9
    refused(lambda: read_recipe(str(tmp_path / "9.yaml")), "more than 8 recipes")


# --- --set


@pytest.mark.parametrize(
    ("sets", "key", "value"),
    [
        (["steps=5"], ["steps"], 5),
        (["steps=5", "steps=6"], ["steps"], 6),
        (["optimizer.learning_rate=2e-5"], ["optimizer", "learning_rate"], 2e-5),
        (["data.sources.0.weight=2"], ["data", "sources", 0, "weight"], 2),
        (["data.sources.1={kind: world}"], ["data", "sources", 1], {"kind": "world"}),
        (["data.sources=[]"], ["data", "sources"], []),
        (["data.sources=[]", "data={sources: [{a: 1}]}", "data.sources.0.a=2"], ["data", "sources", 0, "a"], 2),
        (["new.below.it=no"], ["new", "below", "it"], "no"),
        (["steps=", "steps.a=1"], ["steps", "a"], 1),
        (["note=a=b"], ["note"], "a=b"),
        ([" note = x "], ["note"], "x"),
        (["note='5'"], ["note"], "5"),
        (["ema=null"], ["ema"], None),
    ],
)
def test_set(sets: list[str], key: list[Any], value: object) -> None:
    before = raw()
    after: Any = apply_sets(before, sets)
    assert before == raw()
    for part in key:
        after = after[part]
    assert after == value
    assert type(after) is type(value)


@pytest.mark.parametrize(
    ("each", "words"),
    [
        ("steps", ["sets nothing", "KEY=VALUE"]),
        ("", ["sets nothing"]),
        ("=5", ["sets nothing"]),
        ("a..b=5", ["sets nothing"]),
        (".a=5", ["sets nothing"]),
        ("steps.more=5", ['"more" would stand below 20']),
        ("stage.more=5", ["the text 'kontext'"]),
        ("data.sources.2.weight=1", ['no item "2" in a list of 2']),
        ("data.sources.-1.weight=1", ['no item "-1"']),
        ("data.sources.first=1", ['no item "first"']),
        ("a=[1", ["not YAML", "--set a=[1"]),
        ("a={b: 1, b: 2}", ["twice"]),
        ("a=!!python/name:os.system x", ["!!python/name:os.system"]),
        ("a=*b", ["aliases"]),
        ("a=\udcff", ["not text"]),
    ],
)
def test_bad_set(each: str, words: list[str]) -> None:
    refused(lambda: apply_sets(raw(), [each]), "--set", *words)


# --- strict configurations


def test_resolve() -> None:
    run = resolve(Run, raw(), "here", ["batch.accumulate=2", "precision=bfloat16", "optimizer.clip=1"])
    assert run.optimizer == Optimizer(learning_rate=1e-4, betas=(0.9, 0.95), clip=1.0)
    assert run.batch == Batch(size=8, accumulate=2)
    assert run.data.sources == (Folder(path=Path("pictures")), World(seed=3, weight=2.0))
    assert run.precision is Precision.HALF
    assert type(run.optimizer.clip) is float
    with pytest.raises(ValidationError):
        run.steps = 3  # type: ignore[misc]


def test_wrong_defaults_are_found() -> None:
    class Wrong(Strict):
        steps: int = "three"  # type: ignore[assignment]

    refused(lambda: resolve(Wrong, {}, "here"), "a whole number is wanted", "here")


@pytest.mark.parametrize(
    ("each", "words"),
    [
        ("steps=1.0", ["a whole number is wanted, 1.0 was given"]),
        ("steps=true", ["a whole number is wanted, true was given"]),
        ("steps=", ["a whole number is wanted, null was given"]),
        ("steps='5'", ["the text '5' was given", "without quotes"]),
        ("steps=many", ["the text 'many' was given", "--set steps=VALUE"]),
        ("steps=0", ["a value greater than 0 is wanted, 0 was given"]),
        ('optimizer.learning_rate="1e-4"', ["a number is wanted, the text '1e-4' was given", "without quotes"]),
        ("optimizer.learning_rate=true", ["a number is wanted, true was given"]),
        ("optimizer.learning_rate=.nan", ["a finite number is wanted"]),
        ("optimizer.learning_rate=1e999", ["a finite number is wanted"]),
        ("optimizer.learning_rate=" + "9" * 400, ["a finite number is wanted"]),
        ("optimizer.clip=-.inf", ["a finite number is wanted"]),
        ("optimizer=", ["a map is wanted, null was given"]),
        ("optimizer=[]", ["a map is wanted, a list was given"]),
        ("optimizer.betas={}", ["a list is wanted, a map was given"]),
        ("optimizer.betas=[0.9]", ["the list has no item 1", "optimizer.betas.1"]),
        ("optimizer.betas=[0.9, 1, 1]", ["at most 2 items"]),
        ("optimizer.betas.1=x", ["a number is wanted", "--set optimizer.betas.1=x"]),
        ("resume=1", ["true or false is wanted, 1 was given"]),
        ("resume=yes", ["true or false is wanted, the text 'yes' was given"]),
        ("note=5", ["a text is wanted, 5 was given"]),
        ("workers=aut", ["'auto' or a whole number is wanted", 'did you mean "auto"?']),
        ("precision=bfloat6", ["'float32' or 'bfloat16' is wanted", 'did you mean "bfloat16"?']),
        ("mix={a: 1, b: x}", ["a number is wanted", "mix.b"]),
        ("data.sources=[{kind: folde, path: a}]", ["'folder' or 'world' is wanted", 'did you mean "folder"?']),
        ("data.sources=[{path: a}]", ['the key "kind" is missing', "data.sources.0.kind"]),
        ("data.sources.0.path=3", ["a text is wanted, 3 was given", "data.sources.0.path"]),
        ("data.sources.0=3", ["a map is wanted, 3 was given"]),
        ("stage=kontex", ["'kontext' is wanted", 'did you mean "kontext"?']),
        ("optimizer={}", ['the key "learning_rate" is missing', "add it, or give --set optimizer.learning_rate=VALUE"]),
        ("optimizer.learning_rat=1", ['unknown key "learning_rat"', 'did you mean "learning_rate"?']),
        ("learning_rate=1", ['unknown key "learning_rate"', "did you mean optimizer.learning_rate?"]),
        ("seed=1", ['unknown key "seed"', "did you mean data.sources.1.seed?"]),
        ("data.sources.0.wieght=1", ['unknown key "wieght"', 'did you mean "weight"?']),
        ("optimiser.clip=1", ['unknown key "optimiser"', "--set optimiser.clip=1", 'did you mean "optimizer"?']),
        ("zzz=1", ['unknown key "zzz"', "remove it; known here: stage, steps, optimizer"]),
    ],
)
def test_every_fault_has_its_three_lines(each: str, words: list[str]) -> None:
    refused(lambda: resolve(Run, raw(), "mine.yaml", [each]), "--set", *words)
    refused(
        lambda: resolve(Run, apply_sets(raw(), [each]), "mine.yaml"), "mine.yaml: ", *(w for w in words if w[0] != "-")
    )


def test_a_rule_between_keys() -> None:
    sets = ["ema=0.9", "batch.accumulate=2"]
    message = refused(lambda: resolve(Run, raw(), "mine.yaml", sets), "ema and accumulate exclude one another")
    assert "mine.yaml" in message.splitlines()[1]


def test_all_faults_at_once() -> None:
    sets = ["steps=x", "optimizer.clip=x", "batch.size=0", "optimizer.learning_rat=1", "resume=1", "note=1"]
    message = refused(
        lambda: resolve(Run, raw(), "mine.yaml", sets), "(and 5 more: steps, optimizer.clip, batch.size, …)"
    )
    assert message.splitlines() == [
        'unknown key "learning_rat"',
        "--set optimizer.learning_rat=1 (and 5 more: steps, optimizer.clip, batch.size, …)",
        'did you mean "learning_rate"?',
    ]
    refused(
        lambda: resolve(Run, {}, "mine.yaml"), "mine.yaml: stage (and 2 more: steps, optimizer)", "--set stage=VALUE"
    )


def test_the_last_set_is_named_and_the_file_where_none_wrote() -> None:
    refused(lambda: resolve(Run, raw(), "f.yaml", ["steps=x", "steps=y"]), "--set steps=y")
    refused(lambda: resolve(Run, raw(), "f.yaml", ["batch={size: x}"]), "--set batch={size: x}: batch.size")
    refused(lambda: resolve(Run, raw() | {"steps": "x"}, "f.yaml", ["note=y"]), "f.yaml: steps")


def test_stages() -> None:
    assert isinstance(resolve(STAGES, raw(), "here"), Run)
    assert resolve(STAGES, {"stage": "pdtr", "steps": 3, "rewards": ["ocr"]}, "here") == Distill(
        stage="pdtr", steps=3, rewards=("ocr",)
    )
    refused(
        lambda: resolve(STAGES, raw(), "here", ["stage=pdt"]), "'kontext' or 'pdtr' is wanted", 'did you mean "pdtr"?'
    )
    refused(lambda: resolve(STAGES, raw(), "here", ["stage="]), "'kontext' or 'pdtr' is wanted, null was given")
    refused(lambda: resolve(STAGES, {"steps": 3}, "here"), 'the key "stage" is missing', "here: stage")
    message = refused(
        lambda: resolve(STAGES, raw() | {"rewards": []}, "here"), 'unknown key "rewards"', "here: rewards"
    )
    assert "mean" not in message  # another stage's key is no help here
    refused(lambda: resolve(STAGES, raw(), "here", ["optimizer.clip=x"]), "--set optimizer.clip=x")


# --- saved configurations

numbers = st.floats(allow_nan=False, allow_infinity=False)
sources = st.builds(Folder, path=st.just(Path("a b/c: d")), weight=numbers) | st.builds(World, seed=st.integers())
runs = st.builds(
    Run,
    stage=st.just("kontext"),
    steps=st.integers(min_value=1),
    optimizer=st.builds(
        Optimizer,
        learning_rate=numbers.filter(lambda x: x > 0),
        betas=st.tuples(numbers, numbers),
        weight_decay=numbers.map(abs),
        clip=st.none() | numbers,
    ),
    batch=st.builds(Batch, size=st.integers(1), accumulate=st.just(1)),
    data=st.builds(Data, sources=st.lists(sources, max_size=4).map(tuple)),
    precision=st.sampled_from(Precision),
    resume=st.booleans(),
    workers=st.just("auto") | st.integers(),
    note=st.text()
    | st.sampled_from(["1e-4", "no", "null", "~", "", "0x1f", ".5", ".nan", "- a", "a: b", "<<", "\u2028", "\x85"]),
    ema=st.none() | numbers,
    mix=st.dictionaries(st.text() | st.sampled_from(["1", "true", "no", "base"]), numbers, max_size=3),
)


@settings(deadline=None)
@given(runs)
def test_what_is_dumped_reads_back(run: Run) -> None:
    again = resolve(Run, text.read(dump(run), "here"), "here")
    assert again == run
    assert dump(again) == dump(run)
    assert difference(run.model_dump(mode="json"), text.read(dump(run), "here")) == []


def test_a_dump_in_full() -> None:
    assert dump(resolve(Run, raw(), "here", ["note=no", "workers=2", "optimizer.weight_decay=1e-5"])) == (
        "stage: kontext\nsteps: 20\n"
        "optimizer:\n  learning_rate: 0.0001\n  betas: [0.9, 0.95]\n  weight_decay: 1e-05\n  clip: null\n"
        "batch:\n  size: 8\n  accumulate: 1\n"
        "data:\n  sources:\n"
        "  - kind: folder\n    path: pictures\n    weight: 1.0\n"
        "  - kind: world\n    seed: 3\n    weight: 2.0\n"
        "precision: float32\nresume: false\nworkers: 2\nnote: no\nema: null\nmix: {}\n"
    )


def test_save_replaces_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, path = resolve(Run, raw(), "here"), tmp_path / "run" / "config.yaml"
    save(run, path)
    save(resolve(Run, raw(), "here", ["steps=5"]), path)
    assert resolve(Run, *read_recipe(str(path))).steps == 5

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnipicError, match="No space left"):
        save(run, path)
    assert resolve(Run, *read_recipe(str(path))).steps == 5
    assert [p.name for p in path.parent.iterdir()] == ["config.yaml"]


def test_save_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnipicError) as error:
        save(resolve(Run, raw(), "here"), tmp_path / "file" / "config.yaml")
    assert len(str(error.value).splitlines()) == 3


def test_difference() -> None:
    old = {"a": {"b": 1, "c": [1, 2], "d": True}, "e": 1, "f": [{"g": 1}, 2]}
    new = {"a": {"b": 2, "c": [1], "d": 1}, "f": [{"g": 2}, 2], "h": None}
    assert difference(old, new) == ["a.b", "a.c", "a.d", "f.0.g", "h", "e"]
    assert difference(old, old) == []
    assert difference({"a": 1}, {"a": 1.0}) == []


def test_a_run_goes_on_only_as_it_was_started(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save(resolve(Run, raw(), "here"), path)

    def check(*sets: str, harmless: tuple[str, ...] = ()) -> None:
        check_same(path, resolve(Run, raw(), "here", sets), harmless)

    check()
    refused(lambda: check("optimizer.clip=1"), "optimizer.clip null, and now it is 1.0", str(path), "--run-dir")
    check("optimizer.clip=1", harmless=("optimizer.clip",))
    check("optimizer.clip=1", "steps=5", harmless=("optimizer", "steps"))
    refused(lambda: check("optimizer.clip=1", "steps=5", harmless=("optimizer",)), "steps 20, and now it is 5")
    refused(lambda: check("note=" + "long " * 200), "note")
    path.write_text(path.read_text().replace("resume: false\n", ""))
    check()  # a setting that the file does not know yet, at its default
    refused(lambda: check("resume=true"), "resume false, and now it is true")
    save(resolve(Run, raw(), "here"), path)
    path.write_text(path.read_text() + "gone: 1\n")
    refused(check, "gone 1, and now it is absent")
    path.unlink()
    refused(check, "cannot be read", str(path))
