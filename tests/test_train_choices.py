"""Training's random choices as distributions, its updates against closed forms, and its batches and caches."""

from __future__ import annotations

import json
import math
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import Tensor, nn

from tests.reference import training as twin
from tests.test_train_stages import BATCH, CPU, JOINT, KONTEXT, LORA, SEED, SMALL, draws_of, micro_of, stage
from unipic import BadInput, flow, pictures
from unipic.config import resolve
from unipic.data.buckets import fit
from unipic.models.find import find_model
from unipic.models.folder import LAYOUTS
from unipic.train.batches import Batches, DataConfig, Pictures, scope_of
from unipic.train.cache import Cache
from unipic.train.optim import EmaConfig, OptimizerConfig, Weights, learning_rate
from unipic.train.randomness import Draws
from unipic.train.stages import read
from unipic.types import Condition

SAMPLES = 20_000
UNLIKELY = 1e-5  # two-sided; seeds are fixed, so that a test fails always or never


# --- random choices ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [KONTEXT, JOINT], ids=["kontext", "joint"])
@pytest.mark.parametrize("shape", [{}, {"mean": -0.5, "std": 1.5, "shift": 3.0}], ids=["plain", "shifted"])
def test_what_a_stage_draws(raw: Any, shape: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """logit(t), unshifted, is normal; a tenth of texts is dropped; noise is standard; none depends on another."""
    made = stage(raw, place=False, times=shape)
    drawn: list[tuple[Tensor, Tensor]] = []
    texts: list[str] = []
    made.latents = SimpleNamespace(of=lambda micro: torch.zeros(len(micro.ids), 16, 2, 2), of_references=lambda _: [])

    def encode(given: Sequence[str], *_: Any) -> Condition:
        texts.extend(given)
        return Condition(torch.zeros(len(given), 1, 1), torch.zeros(len(given), 1))

    made.encode = encode
    made.transformer = None
    monkeypatch.setattr("unipic.train.dit.flow_losses", lambda v, x0, t, noise, _: drawn.append((t, noise)) or t)
    for start in range(0, SAMPLES, 1000):
        numbers = tuple(range(start, start + 1000))
        blank = torch.zeros(1000, 3, 8, 8)
        micro = Pictures(numbers, ("",) * 1000, "generate", ("said",) * 1000, blank, (), (False,) * 1000)
        made.losses(micro, Draws(SEED, numbers, CPU))

    t, noise = (torch.cat(column).double() for column in zip(*drawn, strict=True))
    assert ((t > 0) & (t < 1)).all()
    config = made.config.times
    straight = t / (config.shift - (config.shift - 1) * t)
    normal = (torch.log(straight / (1 - straight)) - config.mean) / config.std
    assert stats.kstest(normal.numpy(), "norm").pvalue > UNLIKELY
    dropped = torch.tensor([text == "" for text in texts]).double()
    assert set(texts) == {"said", ""}
    assert stats.binomtest(int(dropped.sum()), SAMPLES, 0.1).pvalue > UNLIKELY
    assert stats.kstest(noise[:, :, 0, 0].flatten()[:SAMPLES].numpy(), "norm").pvalue > UNLIKELY
    table = torch.stack([normal, dropped, noise[:, 0, 0, 0], noise[:, -1, -1, -1]])
    assert float((torch.corrcoef(table) - torch.eye(4)).abs().max()) < 4.5 / math.sqrt(SAMPLES)


def test_paths_of_rectified_flow() -> None:
    normal = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    x = normal.double().numpy()
    t = flow.logit_normal(normal, 0.5, 2.0)
    np.testing.assert_allclose(t.numpy(), 1 / (1 + np.exp(-(0.5 + 2 * x))), rtol=1e-5)
    odds = t.double() / (1 - t.double())
    moved = flow.shifted(t.double(), 3.0)
    torch.testing.assert_close(moved / (1 - moved), 3 * odds)  # shifting multiplies the odds
    assert torch.equal(flow.shifted(t, 1.0), t)
    x0, noise = torch.randn(2, 3, 4, 5, 6).double()
    points = flow.interpolate(x0, noise, torch.tensor([0.0, 0.25, 1.0]).double())
    torch.testing.assert_close(points, torch.stack([x0[0], 0.75 * x0[1] + 0.25 * noise[1], noise[2]]))


def test_a_samples_numbers_are_its_own() -> None:
    """They depend on its number and the seed alone, and no two streams are alike."""
    read = lambda numbers, seed=SEED: [(d := Draws(seed, numbers, CPU)).normal(2, 3), d.uniform(), d.normal()]  # noqa: E731
    whole = read(range(8))
    assert [x.dtype for x in whole] == [torch.float32] * 3
    for part in (range(2, 5), [7], [5, 0, 3]):
        assert all(torch.equal(a, b[list(part)]) for a, b in zip(read(part), whole, strict=True))
    seen = Counter()
    for seed in (0, 1, 2**32 - 1):
        numbers = [*range(5000), 2**33, 2**33 + 1]
        seen.update(row.tobytes() for row in Draws(seed, numbers, CPU).normal(4).numpy())
    assert len(seen) == seen.total() == 3 * 5002


# --- batches ----------------------------------------------------------------------------------------------------------


def data(**raw: Any) -> DataConfig:
    config: DataConfig = resolve(TypeAdapter(DataConfig), raw, "test")
    return config


def test_tasks_alternate_and_every_size_has_its_share() -> None:
    """All sizes that the phase's resolution holds, equally often, and none above it."""
    phases = [{"resolution": 64}, {"step": 10, "resolution": 80}, {"step": 20, "resolution": 128}]
    batches = Batches(data(phases=phases), SEED, 1, None)
    assert [batches.micros(step, range(1))[0].task for step in range(6)] == ["generate", "edit"] * 3
    steps, sizes = 4000, {64: 1, 80: 3, 128: 5}
    assert {batches.micros(step, range(1))[0].size for step in range(10)} == {(64, 64)}
    middle = {batches.micros(step, range(1))[0].size for step in range(10, 20)}
    assert middle <= {(64, 64), (96, 64), (64, 96)}
    assert len(middle) > 1
    found = Counter(batches.source.draw("edit", turn, 1, 128).size for turn in range(steps))
    assert len(found) == sizes[128]
    assert stats.chisquare(list(found.values())).pvalue > UNLIKELY


def test_tasks_may_come_in_other_proportions_and_no_batch_comes_twice() -> None:
    batches = Batches(data(**SMALL, tasks=["generate", "edit", "generate"]), SEED, 2, None)
    micros = [batches.micros(step, range(2))[0] for step in range(9)]
    assert [m.task for m in micros] == ["generate", "edit", "generate"] * 3
    assert len({id for m in micros for id in m.ids}) == 18
    once = Batches(data(**SMALL, tasks=["generate"]), SEED, 2, None)
    assert [m.ids for m in micros if m.task == "generate"] == [once.micros(s, range(2))[0].ids for s in range(6)]


def test_a_batch_does_not_depend_on_its_split() -> None:
    whole = Batches(data(**SMALL), SEED, 6, None).micros(5, range(6))[0]
    parts = [m for share in (range(3), range(3, 6)) for m in Batches(data(**SMALL), SEED, 6, 2).micros(5, share)]
    assert [m.numbers for m in parts] == [(30, 31), (32,), (33, 34), (35,)]
    assert whole.numbers == tuple(range(30, 36))
    assert torch.equal(torch.cat([m.pixels for m in parts]), whole.pixels)
    assert torch.equal(torch.cat([m.references[0] for m in parts]), whole.references[0])
    assert sum((m.texts for m in parts), ()) == whole.texts


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Two folders whose samples have the same ids and other pictures; edits with two references, of any size."""
    for number, name in enumerate("ab"):
        rng = np.random.default_rng(number)
        folder, lines = tmp_path / name, []
        folder.mkdir()
        for i in range(4):
            for part, size in (("source", (60, 50)), ("other", (200, 90)), ("target", (120, 90))):
                pixels = rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{part}{i}.png")
            lines.append({"image": f"target{i}.png", "text": f"picture {i}"})
            source = [f"source{i}.png", f"other{i}.png"]
            lines.append({"source": source, "instruction": f"edit {i}", "target": f"target{i}.png"})
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return [str(tmp_path / name) for name in "ab"]


def folder_data(folders: list[str], **more: Any) -> dict[str, Any]:
    sources = [{"kind": "folder", "path": path} for path in folders]
    return {"sources": sources, "phases": [{"resolution": 96}], **more}


def test_a_folder_of_pictures_trains_kontext(folders: list[str]) -> None:
    made = stage(KONTEXT, data=folder_data(folders[:1]))
    for step, references in ((0, 0), (1, 2)):
        micro = micro_of(made, step)
        assert micro.size == (96, 64)
        assert len(micro.references) == references
        for i, text in enumerate(micro.texts):
            number = text.split()[1]
            for pixels, part in zip((micro.pixels, *micro.references), ("target", "source", "other"), strict=False):
                picture = fit(pictures.load(Path(folders[0]) / f"{part}{number}.png"), (96, 64))
                assert np.array_equal(pixels[i].permute(1, 2, 0), np.asarray(picture))
        losses = made.losses(micro, draws_of(micro))
        losses.sum().backward()
        assert losses.isfinite().all()
        assert losses.shape == (BATCH,)


@pytest.mark.parametrize(
    ("changes", "where", "mend"),
    [
        ({"phases": []}, "data.phases", "give one, such as {resolution: 512}"),
        ({"phases": [{"step": 1, "resolution": 64}]}, "data.phases", "sort them by step"),
        ({"cache_dir": "FOLDER/a/metadata.jsonl"}, "data.cache_dir: FOLDER/a/metadata.jsonl", "give another"),
        ({"cache_dir": "FOLDER/a/metadata.jsonl/deep/er"}, "data.cache_dir: FOLDER/a/metadata.jsonl/deep/er", None),
        ({"cache_dir": "FOLDER/nowhere"}, "data.cache_dir: FOLDER/nowhere", None),
    ],
    ids=["no phases", "late phases", "a file", "below a file", "a link to nowhere"],
)
def test_data_that_cannot_be(
    changes: dict[str, Any], where: str, mend: str | None, folders: list[str], tmp_path: Path
) -> None:
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    named = {k: v.replace("FOLDER", str(tmp_path)) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(BadInput) as refusal:
        Batches(data(**named), SEED, 1, None)
    _, *rest = str(refusal.value).splitlines()
    assert rest == [where.replace("FOLDER", str(tmp_path)), mend or "give another"]


def test_a_cache_may_be_begun_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "new/er", "relative", "relative/deeper"):
        assert Batches(data(cache_dir=str(folder)), SEED, 1, None).data.cache_dir == str(folder)
    assert list(tmp_path.iterdir()) == []  # nothing is made before there is something to keep


# --- caches -----------------------------------------------------------------------------------------------------------

FROZEN = {**JOINT, "tune": {"connector": False}, "lora": LORA}


def losses_of(made: Any, steps: range) -> list[Tensor]:
    with torch.no_grad():
        return [made.losses(m, draws_of(m)) for m in (micro_of(made, step) for step in steps)]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("raw", [KONTEXT, FROZEN], ids=["kontext", "metaquery"])
def test_caches_change_no_bit(raw: dict[str, Any], folders: list[str], tmp_path: Path) -> None:
    """With much memory, with little, on disk, from disk, and begun in the middle as a resumed run does. Without caches
    a batch is encoded as one, which is the same up to rounding."""
    kept = {"cache_gb": 1.0}
    ways = [kept, {"cache_gb": 3e-5}, kept | {"cache_dir": str(tmp_path / "c")}]
    ways += [ways[-1], {"cache_gb": 0.0, "cache_dir": str(tmp_path / "c")}]
    known, *others = (losses_of(stage(raw, data=folder_data(folders, **way), drop_text=0.3), range(6)) for way in ways)
    assert all(same(known, other) for other in others)
    resumed = stage(raw, data=folder_data(folders, **kept), drop_text=0.3)
    assert same(known[4:], losses_of(resumed, range(4, 6)))
    assert resumed.latents.cache.size > 0
    assert resumed.conditions.size > 0
    without = losses_of(stage(raw, data=folder_data(folders, cache_gb=0.0), drop_text=0.3), range(6))
    torch.testing.assert_close(torch.stack(without), torch.stack(known), rtol=1e-3, atol=0)


def watched(made: Any) -> dict[str, list[int]]:
    """How many samples each call of a stage's encoders gets from now on."""
    sizes: dict[str, list[int]] = {"pictures": [], "texts": []}

    def watch(owner: Any, name: str, kind: str) -> None:
        own = getattr(owner, name)
        setattr(owner, name, lambda given, *more: (sizes[kind].append(len(given)), own(given, *more))[1])

    watch(made.vae, "latents", "pictures")
    if hasattr(made, "mllm"):
        watch(made.mllm, "states_at_queries", "texts")
    else:
        watch(made.text, "encode", "texts")
    return sizes


@pytest.mark.parametrize("raw", [KONTEXT, FROZEN], ids=["kontext", "metaquery"])
def test_without_caches_a_batch_is_encoded_at_once(raw: dict[str, Any], folders: list[str]) -> None:
    """An edit: its picture and its two references. With caches one by one, and then never again."""
    off = stage(raw, data=folder_data(folders[:1], cache_gb=0), drop_text=0)
    on = stage(raw, data=folder_data(folders[:1]), drop_text=0)
    for made, wanted in ((off, {"pictures": [BATCH] * 3, "texts": [BATCH]}), (on, None)):
        sizes = watched(made)
        losses_of(made, range(1, 2))
        assert sizes == (wanted or {"pictures": [1] * 3 * BATCH, "texts": [1] * BATCH})
        losses_of(made, range(1, 2))
        assert {kind: sum(found) for kind, found in sizes.items()} == (
            {"pictures": 6 * BATCH, "texts": 2 * BATCH} if made is off else {"pictures": 3 * BATCH, "texts": BATCH}
        )
    assert off.latents.cache.size == off.conditions.size == 0


@pytest.mark.parametrize("reference", ["both", "dit"])
def test_conditions_are_kept_under_what_the_language_model_sees(reference: str, folders: list[str]) -> None:
    """Another text or another reference is another condition; where it sees no references, the text is all."""
    made = stage(FROZEN, reference=reference, data=folder_data(folders[:1]))
    micro = micro_of(made, 1)
    texts = [micro.texts[0]] * BATCH
    got = made.encode(texts, micro)
    alone = [made.conditioner(made.mllm.states_at_queries(["x"], [[]], made.conditioner.meta_queries))]
    assert not torch.equal(got.tokens[:1], alone[0].tokens)
    assert len(made.conditions._memory) == (BATCH if reference == "both" else 1)
    assert torch.equal(got.tokens[0], got.tokens[1]) == (reference == "dit")
    made.encode(["another"] * BATCH, micro)
    assert len(made.conditions._memory) == 2 * (BATCH if reference == "both" else 1)
    swapped = Pictures(**{**vars(micro), "references": micro.references[::-1]})  # their order says which is edited
    made.encode(texts, swapped)
    assert len(made.conditions._memory) == (3 * BATCH if reference == "both" else 2)
    sizes = watched(made)
    again = made.encode(texts, micro)
    assert sizes["texts"] == []
    assert same([got.tokens, got.pooled], [again.tokens, again.pooled])


def test_what_a_trained_connector_says_is_not_kept(folders: list[str], tmp_path: Path) -> None:
    made = stage(JOINT, data=folder_data(folders[:1], cache_dir=str(tmp_path / "c")), drop_text=0)
    sizes = watched(made)
    made.losses(micro := micro_of(made, 1), draws_of(micro)).sum().backward()
    losses_of(made, range(1, 2))
    assert sizes["texts"] == [BATCH, BATCH]
    assert made.conditioner.meta_queries.grad is not None
    assert made.conditions.size == 0


def changed(name: str, component: str, folder: Path) -> str:
    """A copy of an embedded model with other weights, or another vocabulary, in one component."""
    shutil.copytree(find_model(name).root, folder)
    (folder / "manifest.json").unlink()
    if weights := LAYOUTS[component].weights:
        path = next((folder / component).glob(f"{weights}*.safetensors"))  # the whole, or a shard
        save_file({key: 0.9 * tensor for key, tensor in load_file(path).items()}, path)
    else:
        path = folder / component / "tokenizer.json"
        path.write_text(path.read_text() + " ")
    return str(folder)


KEPT = {
    "tiny-kontext transformer": set(),
    "tiny-kontext vae": {"pictures"},
    "tiny-kontext text_encoder_2": {"texts"},
    "tiny-kontext tokenizer": {"texts"},
    "tiny transformer": set(),
    "tiny conditioner": {"texts"},
    "tiny mllm": {"texts"},
}


@pytest.mark.parametrize("what", KEPT)
def test_runs_share_what_the_same_component_makes(what: str, folders: list[str], tmp_path: Path) -> None:
    """KEPT says what is made again where a run's model differs from the last one's in a component."""
    model, component = what.split()
    raw = KONTEXT if model == "tiny-kontext" else FROZEN
    shared = folder_data(folders[:1], cache_dir=str(tmp_path / "c"))
    losses_of(stage(raw, data=shared), range(2))
    other = stage({**raw, "model": changed(model, component, tmp_path / "model")}, data=shared)
    sizes = watched(other)
    losses_of(other, range(2))
    assert {kind for kind, found in sizes.items() if found} == KEPT[what]


def test_without_a_folder_nothing_is_hashed() -> None:
    folder = find_model("tiny")
    assert scope_of(data(), folder, "conditioner") == ""
    assert len({scope_of(data(cache_dir="c"), folder, c) for c in ("conditioner", "vae", "transformer")}) == 3


@pytest.mark.parametrize("name", ["kontext", "align", "joint", "kontext-t2i", "table3-dit"])
def test_of_millions_of_samples_the_papers_recipes_keep_none(name: str) -> None:
    config = read(f"paper/{name}", ["data.sources.0.path=folder"]).data
    assert not Cache(int(config.cache_gb * 2**30), config.cache_dir).keeps


def test_latents_are_kept_under_their_pixels_and_their_maker(folders: list[str], tmp_path: Path) -> None:
    """Folders with the same ids, and autoencoders of another scale, share a cache without harm."""
    shared = {"cache_dir": str(tmp_path / "cache"), "tasks": ["generate"]}
    for path in folders:
        made = stage(KONTEXT, data=folder_data([path], **shared))
        micro = micro_of(made, 0)
        wanted = torch.cat([made.vae.latents(p[None]) for p in micro.pixels])
        # a batch sums in another order; another folder's, or another scale's, are off by about 1
        torch.testing.assert_close(made.latents.of(micro), wanted, rtol=1e-4, atol=1e-5)
    made.vae.scale *= 2
    again = type(made.latents)(made.vae, made.config.data, scope_of(made.config.data, made.folder, "vae"), CPU)
    torch.testing.assert_close(again.of(micro), 2 * wanted)


def test_what_never_comes_again_is_not_kept() -> None:
    made = stage(KONTEXT)
    micro = micro_of(made, 1)
    made.losses(micro, draws_of(micro))
    assert made.latents.cache.size == made.conditions.size == 0


@pytest.mark.filterwarnings("ignore::unipic.errors.PromptCut")
@pytest.mark.parametrize("again", ["folder", "few scenes"])
def test_of_a_mixture_what_comes_again_is_kept(again: str, folders: list[str]) -> None:
    source = {"kind": "folder", "path": folders[0]} if again == "folder" else {"kind": "world", "limit": 5}
    data = {"sources": [source, {"kind": "world"}], "phases": [{"resolution": 96}], "tasks": ["generate"]}
    made = stage(KONTEXT, data=data, drop_text=0)
    kept: set[str] = set()
    for step in range(4):
        micro = micro_of(made, step)
        with torch.no_grad():
            made.losses(micro, draws_of(micro))
        fresh = made.batches.source.place("generate", step)[0] == 1
        assert micro.lasting == (not fresh,) * BATCH
        kept |= set() if fresh else set(micro.texts)
        assert set(made.conditions._memory) == kept
        assert len(made.latents.cache._memory) == len(kept)
    assert kept


class Maker:
    """Makes n×n of a key's number, and counts what it was asked."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def get(self, cache: Cache, *keys: str | None) -> Tensor:
        def make(missing: list[int]) -> list[tuple[Tensor, ...]]:
            self.asked.update(str(keys[i]) for i in missing)
            return [(torch.full((10, 10), float(keys[i] or -1)),) for i in missing]

        (found,) = cache.get(keys, make, CPU)
        assert [float(row[0, 0]) for row in found] == [float(key or -1) for key in keys]
        return found


def test_memory_is_bounded_and_the_least_used_leaves_first() -> None:
    maker, cache = Maker(), Cache(limit=3 * 400)
    for keys in (("1", "2", None), ("3", "1", "1"), ("4", None, None), ("1", "3", "4")):
        maker.get(cache, *keys)
        held = {id(t.untyped_storage()): t.untyped_storage().nbytes() for made in cache._memory.values() for t in made}
        assert sum(held.values()) == cache.size <= 3 * 400
    assert maker.asked == {"1": 1, "2": 1, "3": 1, "4": 1, "None": 3}  # 2 alone was pushed out
    maker.get(cache, "2")
    maker.get(cache, "3", "4", "2")
    assert maker.asked["2"] == 2
    nothing = Cache(limit=0)
    maker.get(nothing, "5", "5")
    maker.get(nothing, "5")
    assert maker.asked["5"] == 3
    assert nothing.size == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_memory_is_the_cpus(tmp_path: Path) -> None:
    """What was made on a GPU leaves nothing there, and comes back to it."""
    gpu, made = torch.device("cuda"), torch.randn(2, 1000, device="cuda")
    for cache in (Cache(2**20), Cache(2**20, tmp_path), Cache(0, tmp_path)):
        for _ in range(2):
            (found,) = cache.get(["1", "2"], lambda missing: [(made[i].clone(),) for i in missing], gpu)
            assert found.device.type == "cuda"
            assert torch.equal(found, made)
            assert all(t.device.type == "cpu" for kept in cache._memory.values() for t in kept)


def test_a_cut_file_is_made_again(tmp_path: Path) -> None:
    maker = Maker()
    maker.get(Cache(2**20, tmp_path, "a"), "1")
    maker.get(Cache(2**20, tmp_path, "a"), "1")
    assert maker.asked["1"] == 1
    maker.get(Cache(2**20, tmp_path, "b"), "1")  # made by another model
    assert maker.asked["1"] == 2
    path = Cache(0, tmp_path, "a")._path("1")
    whole = path.read_bytes()
    for n, length in enumerate((0, 1, 7, 8, 9, 60, len(whole) - 400, len(whole) - 1), start=3):
        path.write_bytes(whole[:length])
        maker.get(Cache(2**20, tmp_path, "a"), "1")
        assert maker.asked["1"] == n
        assert path.read_bytes() == whole


def test_a_changed_bit_is_seen(tmp_path: Path) -> None:
    """Anywhere in the file: in its hash, in its header, in its numbers."""
    made = (torch.randn(3, dtype=torch.bfloat16), torch.randn(2, 2))
    Cache(0, tmp_path)._keep("1", made)
    (path,) = (p for p in tmp_path.rglob("*") if p.is_file())
    whole = path.read_bytes()
    assert same(list(Cache(0, tmp_path)._find("1") or ()), list(made))
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        assert Cache(0, tmp_path)._find("1") is None


def write_often(folder: Path) -> None:
    for _ in range(150):
        Cache(0, folder)._keep("7", (torch.full((10, 10), 7.0),))


def test_processes_that_write_the_same_key(tmp_path: Path) -> None:
    """A reader beside them sees the whole of it, or nothing."""
    writers = [multiprocessing.get_context("fork").Process(target=write_often, args=(tmp_path,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        found = Cache(0, tmp_path)._find("7")
        assert found is None or torch.equal(found[0], torch.full((10, 10), 7.0))
        assert found is not None or reads == 0  # once there, it stays
        reads += found is not None
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert reads > 0
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 1


# --- updates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("warmup", "schedule"), [(0, "cosine"), (5, "cosine"), (5, "constant"), (0, "constant")])
def test_the_rate(warmup: int, schedule: Any) -> None:
    config = OptimizerConfig(lr=0.3, warmup=warmup, schedule=schedule)
    wanted = twin.rate(0.3, warmup, 40, schedule == "cosine")
    np.testing.assert_allclose([learning_rate(config, step, 40) for step in range(40)], wanted, rtol=1e-12)
    assert max(wanted) == 0.3


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_updates_are_adamw_with_clipping_and_averages(clip: float | None, every: int) -> None:
    """Matrices and kernels decay; biases, gains and what is frozen do not. A gradient or a loss that is not finite is
    no update of the weights, but a step of the schedule."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(3, 4), nn.Linear(4, 2))
    module[4].requires_grad_(False)
    config = OptimizerConfig(lr=0.1, weight_decay=0.3, warmup=2, clip=clip)
    weights = Weights({"m": module}, config, EmaConfig(decay=0.4, every=every))
    start = {n: p.detach().double().numpy().copy() for n, p in module.named_parameters()}
    gradients: dict[str, list[np.ndarray]] = {n: [] for n in weights.parameters["m"]}
    steps, spoilt, wrong, rates = 12, 4, 6, twin.rate(0.1, 2, 12, True)
    named, bad, course = dict(module.named_parameters()), (spoilt, wrong), [start]
    for step in range(steps):
        for name in gradients:
            named[name].grad = torch.randn_like(named[name]) * (3 if step % 2 else 0.01)
        own = {name: named[name].grad.double().numpy().copy() for name in gradients}
        norm = math.sqrt(sum(float((g**2).sum()) for g in own.values()))
        if step not in bad:
            for name, g in own.items():
                gradients[name].append(g * (1.0 if clip is None else min(1.0, clip / norm)))
        if step == spoilt:
            named["3.bias"].grad[1] = math.nan
        got, rate, changed = weights.update(step, steps, math.inf if step == wrong else 1.0)
        assert rate == pytest.approx(rates[step], rel=1e-12)
        assert changed == (step not in bad)
        assert math.isnan(got) if step == spoilt else got == pytest.approx(norm, rel=1e-5)
        assert all(p.grad is None for p in module.parameters())
        course.append({n: p.detach().double().numpy().copy() for n, p in named.items()})
    used = [r for step, r in enumerate(rates) if step not in bad]
    for name, p in module.named_parameters():
        decay = 0.3 if name in ("0.weight", "3.weight") else 0.0
        wanted = twin.adamw(start[name], gradients[name], used, decay, config)[-1] if name in gradients else start[name]
        np.testing.assert_allclose(p.detach().numpy(), wanted, rtol=1e-4, atol=1e-5, err_msg=name)
    averaging = [step for step in range(every - 1, steps, every) if step not in bad]
    counts = [(step + 1) // every for step in averaging]
    for name, average in weights.best()["m"].items():
        seen = [course[every - 1][name], *(course[step + 1][name] for step in averaging)]
        wanted = twin.averaged(seen, 0.4, counts)
        np.testing.assert_allclose(average.numpy(), wanted, rtol=1e-5, atol=1e-6, err_msg=name)


def test_before_the_first_average_the_weights_themselves_are_the_best() -> None:
    module = nn.Linear(2, 2)
    weights = Weights({"m": module}, OptimizerConfig(lr=0.1), EmaConfig(decay=0.9, every=8))
    for step in range(7):
        for p in module.parameters():
            p.grad = torch.ones_like(p)
        weights.update(step, 7, 1.0)
        assert all(torch.equal(weights.best()["m"][name], p) for name, p in module.named_parameters())


def test_what_is_shown_are_the_averages_and_the_weights_come_back_to_the_bit() -> None:
    module = torch.nn.Linear(3, 2)
    weights = Weights({"part": module}, OptimizerConfig(lr=0.1), EmaConfig(decay=0.9))
    for step in range(3):
        module(torch.randn(4, 3)).square().sum().backward()
        weights.update(step, 3, 1.0)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    with weights.averaged():
        for name, p in module.named_parameters():
            assert torch.equal(p, weights.averages["part"][name])
            assert not torch.equal(p, before[name])
    for name, p in module.named_parameters():
        assert torch.equal(p, before[name])
