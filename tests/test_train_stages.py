"""Training: each stage against a float64 twin written from the formulas, and its random choices as distributions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.reference import training as twin
from tests.reference.sd3 import ReferenceSD3
from unipic import BadInput, UniPic
from unipic.config import resolve
from unipic.models import tiny
from unipic.models.find import find_model
from unipic.models.folder import ModelFolder
from unipic.models.kontext import KontextTransformer, blank_transformer, initialise
from unipic.models.metaquery import MetaQuery
from unipic.models.mllm import current_name
from unipic.train import loop
from unipic.train.batches import Pictures
from unipic.train.lora import LoraConfig, add_lora
from unipic.train.optim import Weights
from unipic.train.processes import Processes
from unipic.train.randomness import Draws
from unipic.train.stages import AnyConfig, stage_of

pytestmark = pytest.mark.filterwarnings("ignore::unipic.errors.PromptCut")  # tiny T5s read 48 tokens

CPU, SEED, BATCH = torch.device("cpu"), 3, 4
SMALL = {"phases": [{"resolution": 80}]}  # 64×64, 96×64 and 64×96
CONNECTOR = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_queries": 8,
}
LORA = {"rank": 3, "alpha": 5.0}
KONTEXT = {"stage": "kontext", "model": "tiny-kontext"}
ALIGN = {"stage": "align", "model": "tiny-kontext", "mllm": "tiny", "connector": CONNECTOR}
JOINT = {"stage": "joint", "model": "tiny"}
STAGES = {
    "vae": {"stage": "vae"},
    "text": {"stage": "text"},
    "mllm": {"stage": "mllm", "data": {}},
    "kontext": KONTEXT,
    "kontext-lora": {**KONTEXT, "lora": LORA},
    "align": ALIGN,
    "joint": {**JOINT, "transformer": "tiny-kontext"},
    "joint-lora": {**JOINT, "lora": LORA, "tune": {"connector": False}},
}


def stage(raw: Mapping[str, Any], *, place: bool = True, **more: Any) -> Any:
    common = {"steps": 8, "seed": SEED, "batch": BATCH, "optimizer": {"lr": 1e-3}, "data": SMALL}
    made = stage_of(resolve(TypeAdapter(AnyConfig), {**common, **raw, **more}, "test"))
    if place:
        made.place(Processes("cpu", "fp32"))
    return made


def micro_of(made: Any, step: int) -> Any:
    (micro,) = made.batch(step, range(BATCH))
    return micro


def draws_of(micro: Any) -> Draws:
    return Draws(SEED, micro.numbers, CPU)


# --- against the twins ------------------------------------------------------------------------------------------------


def check(made: Any, micro: Any, expected: Tensor, leaves: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Each sample's loss within 1e-5, all gradients within 1e-4 of their tensor's largest entry (or of a thousandth of
    the component's), and none at what is frozen. leaves: of each trained component, by name."""
    losses = made.losses(micro, draws_of(micro))
    assert losses.shape == (len(micro.ids),)
    torch.testing.assert_close(losses.detach().double(), expected.detach(), rtol=1e-5, atol=0)
    assert len({f"{v:.3g}" for v in losses.tolist()}) > 1  # they are each sample's own
    losses.sum().backward()
    expected.sum().backward()
    trained = {c: {n: p for n, p in m.named_parameters() if p.requires_grad} for c, m in made.trained.items()}
    assert trained.keys() == leaves.keys()
    for component, parameters in trained.items():
        wanted = {name: leaf.grad for name, leaf in leaves[component].items()}
        largest = max(float(g.abs().max()) for g in wanted.values() if g is not None)
        assert largest > 0
        for name, p in parameters.items():
            w = wanted[name]
            if p.grad is None or w is None:
                assert all(g is None or not g.any() for g in (p.grad, w)), name
                continue
            bound = 1e-4 * max(float(w.abs().max()), 1e-3 * largest)
            assert float((p.grad.double() - w).abs().max()) <= bound, (component, name)
    mine = {id(p) for parameters in trained.values() for p in parameters.values()}
    assert all(p.grad is None and not p.requires_grad for p in everything(made) if id(p) not in mine)


def everything(made: Any) -> list[nn.Parameter]:
    """The parameters of all models that a stage holds."""
    modules = [getattr(made, name, None) for name in ("transformer", "conditioner", "pictures", "summaries")]
    modules += [made.mllm.model] if hasattr(made, "mllm") else []
    modules += [getattr(made.vae, "module", made.vae)] if hasattr(made, "vae") else []
    modules += made.text.modules() if hasattr(made, "text") else []
    return [p for module in modules if isinstance(module, nn.Module) for p in module.parameters()]


def transformer_twin(made: Any) -> tuple[ReferenceSD3, dict[str, Tensor]]:
    """With the leaves of what is trained: all weights, or the adapters'."""
    config, lora = dict(made.transformer.config), getattr(made.config, "lora", None)
    if lora is None:
        reference = ReferenceSD3(made.transformer.state_dict(), config)
        return reference, reference.weights
    adapters = {name: leaf for name, leaf in twin.leaves_of(made.transformer).items() if ".lora_" in name}
    base = {n.replace(".base_layer.", "."): w for n, w in made.transformer.state_dict().items() if ".lora_" not in n}
    reference = ReferenceSD3(base, config)
    reference.weights = twin.adapted(base, adapters, lora.rank, lora.alpha)
    return reference, adapters


def calm(made: Any) -> Any:
    """Weights of a transformer (and its adapters) as they are soon after training has begun.

    The packaged ones are so wild that float32's rounding of t·1000, 3e-5, shows in the losses; and positions are stored
    in half precision, which the twin does not read.
    """
    torch.manual_seed(1)
    with torch.no_grad():
        exact = KontextTransformer.from_config(made.transformer.config)
        made.transformer.pos_embed.pos_embed.copy_(exact.pos_embed.pos_embed)
        initialise(made.transformer)
        for p in made.transformer.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return made


def latents(made: Any, micro: Pictures) -> list[Tensor]:
    """Of the pictures and of each reference."""
    found = [x.double() for x in (made.latents.of(micro), *made.latents.of_references(micro))]
    vae = twin.doubled(made.vae.module)
    for mine, pixels in zip(found, (micro.pixels, *micro.references), strict=True):
        torch.testing.assert_close(mine, twin.latents(vae, pixels), rtol=0, atol=1e-5)
    return found


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that has learnt nothing: float32's rounding does not show in its losses, as it does where they are small,
    nor in the L1's gradient, whose sign it decides where a copy is good."""
    tiny.make_metaquery(folder := tmp_path_factory.mktemp("random") / "tiny")
    return str(folder)


@pytest.mark.parametrize("step", [0, 1])
def test_vae(step: int, random: str) -> None:
    made = stage(
        STAGES["vae"], model=random, data={**SMALL, "tasks": ["generate", "edit"]}, kl=0.05, edges=0.7, noise=0.3
    )
    vae, micro = twin.doubled(made.vae), micro_of(made, step)
    draws = draws_of(micro)
    pictures = [twin.vae_loss(vae, pixels, draws, made.config) for pixels in (micro.pixels, *micro.references)]
    check(made, micro, sum(pictures) / len(pictures), {"vae": dict(vae.named_parameters())})


@pytest.mark.parametrize("step", [0, 1])
def test_text(step: int) -> None:
    made = stage(STAGES["text"])
    micro, encoders = micro_of(made, step), [twin.doubled(e) for e in made.text.modules()]
    tokenizers = [*made.text.clip_tokenizers, made.text.t5_tokenizer]
    pictures, summaries = twin.doubled(made.pictures), twin.leaves_of(made.summaries)

    said: list[list[Tensor]] = [[], [], []]
    for text in micro.texts:
        tokens, pooled = twin.text_condition(encoders, tokenizers, text)
        own = [pooled[0, :32], pooled[0, 32:], tokens[0, tokenizers[0].model_max_length :].mean(0)]
        for i, x in enumerate(own):
            said[i].append(summaries[f"projections.{i}.weight"] @ x + summaries[f"projections.{i}.bias"])
    after = 2 * micro.pixels.double() / 255 - 1
    before = 2 * micro.references[0].double() / 255 - 1 if micro.references else 0 * after
    seen = pictures.layers(torch.cat([after, before], dim=1)).chunk(3, dim=1)
    expected = twin.contrastive_losses([torch.stack(x) for x in said], seen, summaries["log_scale"])

    names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    leaves = {name: dict(encoder.named_parameters()) for name, encoder in zip(names, encoders, strict=True)}
    check(made, micro, expected, {**leaves, "pictures": dict(pictures.named_parameters()), "summaries": summaries})


def test_mllm(random: str) -> None:
    """Samples read as MetaQuery reads and as `describe` reads, with and without a picture, in one batch."""
    made = stage(STAGES["mllm"], model=random, data={"foresee": 0.7}, batch=12)
    (micro,) = made.batch(0, range(12))
    flat = [bool(u < 0.5) for u in draws_of(micro).uniform()]
    assert len({(f, a.picture is None) for f, a in zip(flat, micro.asked, strict=True)}) == 4
    model = twin.LanguageModel(made.mllm)
    losses = [
        model.answer_loss(a.qa.question, a.qa.answer, a.picture, f) for a, f in zip(micro.asked, flat, strict=True)
    ]
    check(made, micro, torch.stack(losses), {"mllm": dict(model.model.named_parameters())})


def test_forwards_of_mllm_hold_samples_of_about_equal_length() -> None:
    made = stage(STAGES["mllm"], batch=32, micro_batch=8)
    micros = made.batch(3, range(32))
    assert sorted(n for micro in micros for n in micro.numbers) == list(range(96, 128))
    assert all(made.source.load(n) == a for micro in micros for n, a in zip(micro.numbers, micro.asked, strict=True))
    lengths = [[len(a.qa.question + a.qa.answer) for a in micro.asked] for micro in micros]
    assert all(max(one) <= min(following) for one, following in pairwise(lengths))
    assert lengths[-1][-1] > 3 * lengths[0][0]


@pytest.mark.parametrize(
    "raw", [KONTEXT, STAGES["kontext-lora"], {**KONTEXT, "noises": 3}], ids=["full", "lora", "noises"]
)
@pytest.mark.parametrize("step", [0, 1], ids=["generate", "edit"])
def test_kontext(raw: dict[str, Any], step: int) -> None:
    made = stage(raw, drop_text=0.5, times={"mean": 0.3, "std": 1.2, "shift": 2.0})
    calm(made)
    micro = micro_of(made, step)
    x0, *references = latents(made, micro)
    choices = twin.Choices(SEED, micro.numbers, x0.shape[1:], 0.5, made.config.times, made.config.noises)
    assert 0 < sum(choices.dropped) < BATCH
    encoders = [twin.doubled(encoder) for encoder in made.text.modules()]
    tokenizers = [*made.text.clip_tokenizers, made.text.t5_tokenizer]
    with torch.no_grad():
        conditions = [
            twin.text_condition(encoders, tokenizers, "" if gone else text)
            for gone, text in zip(choices.dropped, micro.texts, strict=True)
        ]
    transformer, leaves = transformer_twin(made)
    assert len(references) == step
    check(made, micro, twin.flow_losses(transformer, x0, choices, conditions, references), {"transformer": leaves})


def metaquery_twin(made: Any, micro: Pictures) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
    """Losses, and the leaves of queries, connector and DiT."""
    config, model = made.config, twin.LanguageModel(made.mllm)
    x0, *references = latents(made, micro)
    choices = twin.Choices(SEED, micro.numbers, x0.shape[1:], config.drop_text, config.times)
    assert 0 < sum(choices.dropped) < BATCH
    w, heads = twin.leaves_of(made.conditioner), made.conditioner.config["connector_config"]["num_attention_heads"]
    conditions = []
    for i, (gone, text) in enumerate(zip(choices.dropped, micro.texts, strict=True)):
        columns = micro.references if config.reference in ("mllm", "both") else ()
        pictures = [Image.fromarray(pixels[i].permute(1, 2, 0).contiguous().numpy()) for pixels in columns]
        text = "" if gone else text
        ids, seen = model.prompt(text if pictures else f"Generate an image: {text}", pictures, flat=True)
        embeds = torch.cat([model.embeds(ids, seen).detach(), w["meta_queries"][None]], dim=1)
        conditions.append(twin.connected(w, heads, model.states(embeds)[:, len(ids) :]))
    transformer, leaves = transformer_twin(made)
    references = references if config.reference in ("dit", "both") else []
    expected = twin.flow_losses(transformer, x0, choices, conditions, references)
    return expected, {"conditioner": w, "transformer": leaves}


def test_align() -> None:
    made = calm(stage(ALIGN, drop_text=0.5, data={**SMALL, "tasks": ["generate"]}))
    micro = micro_of(made, 1)
    expected, leaves = metaquery_twin(made, micro)
    check(made, micro, expected, {"conditioner": leaves["conditioner"]})


@pytest.mark.parametrize("reference", ["mllm", "dit", "both"])
@pytest.mark.parametrize("tuned", [("connector", "dit"), ("connector",), ("dit",), ("connector", "lora")], ids="-".join)
def test_joint(reference: str, tuned: tuple[str, ...]) -> None:
    """All rows of the paper's Tables 2 and 3, and a LoRA in the DiT's place; at times generation."""
    step = 0 if (reference, len(tuned)) == ("both", 2) else 1
    lora = LORA if "lora" in tuned else None
    tune = {"connector": "connector" in tuned, "dit": tuned[-1] != "connector"}
    made = stage(STAGES["joint"], reference=reference, tune=tune, lora=lora, drop_text=0.5)
    calm(made)
    micro = micro_of(made, step)
    expected, leaves = metaquery_twin(made, micro)
    chosen = {"conditioner": tune["connector"], "transformer": tune["dit"]}
    check(made, micro, expected, {name: leaves[name] for name, one in chosen.items() if one})


@pytest.mark.parametrize("name", ["mllm", "kontext", "align", "joint", "joint-connector"])
def test_gradient_checkpointing_saves_memory_and_changes_nothing(name: str) -> None:
    raw = {**JOINT, "tune": {"dit": False}} if name == "joint-connector" else STAGES[name]
    losses, held = [], []
    for on in (False, True):
        made, sizes = stage(raw, gradient_checkpointing=on), [0]
        micro = micro_of(made, 1)

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel() * tensor.itemsize)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            losses.append(made.losses(micro, draws_of(micro)))
        held.append(sum(sizes))
    assert torch.equal(*losses)
    assert held[1] < 0.6 * held[0]


@pytest.mark.parametrize("name", ["kontext", "align", "joint-lora"])
def test_samples_are_shown_in_any_precision(name: str) -> None:
    """Trained weights stay in float32 beside frozen models in bf16."""
    made = stage(STAGES[name], place=False, show={"count": 1, "steps": 1})
    made.place(Processes("cpu", "bf16"))
    shown = made.show()
    assert [len(s.pictures) for s in shown] == [1, 2][: len(made.config.data.tasks)]
    assert stage(STAGES[name], show={"count": 0}).show() == []


# --- what a run leaves ------------------------------------------------------------------------------------------------


def trained_a_little(made: Any) -> tuple[dict[str, dict[str, list[Tensor]]], Weights]:
    """Three updates. Returns every trained parameter before and after each, in float64."""
    weights = Weights(made.trained, made.config.optimizer, made.config.ema)
    course = {c: {n: [p.detach().double()] for n, p in named.items()} for c, named in weights.parameters.items()}
    for step in range(3):
        record = loop.update(made, weights, made.batch(step, range(BATCH)), step, Processes("cpu", "fp32"))
        assert math.isfinite(record["loss"])
        assert record["grad_norm"] > 0
        for component, named in weights.parameters.items():
            for name, p in named.items():
                course[component][name].append(p.detach().double())
    return course, weights


def stored(folder: ModelFolder, component: str) -> dict[str, Tensor]:
    return {n: t for path in (folder.path / component).glob("*.safetensors") for n, t in load_file(path).items()}


@pytest.mark.parametrize("name", STAGES)
def test_the_exported_model_is_the_average_and_all_else_as_it_was(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unipic.train.vae.MEASURED", 4)
    made = stage(STAGES[name], optimizer={"lr": 1e-2}, ema={"decay": 0.2})
    course, weights = trained_a_little(made)
    made.export(tmp_path / "model", weights.best())
    new, lora = find_model(str(tmp_path / "model")), getattr(made.config, "lora", None)
    begun = {"mllm": find_model("tiny"), "transformer": getattr(made, "dit_folder", made.folder)}
    for component in (*new.components(), *(["mllm"] if new.has("mllm") else [])):
        got = stored(new, component)
        before = stored(begun.get(component, made.folder), component)
        if component not in course:
            assert got.keys() == before.keys()
            assert all(torch.equal(t, before[key]) for key, t in got.items())
            continue
        wanted = {key: twin.averaged(values, 0.2) for key, values in course[component].items()}
        assert not all(torch.allclose(value, course[component][key][-1]) for key, value in wanted.items())
        if lora is not None:
            wanted = twin.adapted(before, wanted, lora.rank, lora.alpha)
        if component == "mllm":
            got = {current_name(key): t for key, t in got.items()}
        assert got.keys() >= wanted.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(got[key].double(), value, rtol=1e-6, atol=1e-6, msg=key)


def test_latents_of_a_finished_autoencoder_are_standard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unipic.train.vae.MEASURED", 32)
    made = stage(STAGES["vae"], batch=16)
    made.export(tmp_path / "model", {"vae": made.vae.state_dict()})
    config = find_model(str(tmp_path / "model")).config("vae")
    vae = twin.doubled(made.vae)
    vae.register_to_config(shift_factor=config["shift_factor"], scaling_factor=config["scaling_factor"])
    values = torch.cat([twin.latents(vae, made.batch(step, range(16))[0].pixels).flatten() for step in range(2)])
    assert abs(float(values.mean())) < 1e-4
    assert abs(float(values.std()) - 1) < 1e-4


def test_an_adapter_draws_what_its_merged_model_draws(tmp_path: Path) -> None:
    made = stage(STAGES["kontext-lora"])
    for name, p in made.transformer.named_parameters():
        if ".lora_B." in name:  # they begin without effect
            nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(1))
    made.export(tmp_path / "model", Weights(made.trained, made.config.optimizer, None).best())

    def drawn(model: object, **options: Any) -> np.ndarray:
        system = UniPic.from_pretrained(model, device="cpu", **options)
        return np.asarray(system.generate("a red ring", steps=3)[0]).astype(int)

    beside, merged = drawn("tiny-kontext", lora=tmp_path / "lora"), drawn(tmp_path / "model")
    assert abs(beside - merged).max() <= 1
    assert abs(beside - drawn("tiny-kontext")).max() > 20


def test_the_papers_lora_on_the_papers_transformer() -> None:
    """Rank 32 on SD3.5-Medium: eight layers a block, but the last block has no output of its text stream."""
    folder = ModelFolder(Path(__file__).parent / "published" / "kontext", "published")
    transformer = blank_transformer(folder).requires_grad_(False)
    with torch.device("meta"):
        add_lora(transformer, LoraConfig(), SEED)
    trained = {name: p for name, p in transformer.named_parameters() if p.requires_grad}
    layers = {name.split(".lora_")[0] for name in trained}
    names = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    wanted = {f"transformer_blocks.{b}.attn.{name}" for b in range(24) for name in names}
    assert layers == wanted - {"transformer_blocks.23.attn.to_add_out"}
    assert sum(p.numel() for p in trained.values()) == (24 * 8 - 1) * 32 * (1536 + 1536)
    with pytest.raises(BadInput, match="no layer"):
        add_lora(blank_transformer(folder), LoraConfig(targets=("attn.nothing",)), SEED)


@pytest.mark.parametrize("reference", ["mllm", "dit", "both"])
def test_a_model_is_used_as_it_was_trained(reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sees the picture to be edited (Table 2) goes with the folder."""
    made = stage(JOINT, reference=reference)
    made.export(tmp_path / "model", Weights(made.trained, made.config.optimizer, None).best())
    system = UniPic.from_pretrained(str(tmp_path / "model"), device="cpu")
    told: dict[str, int] = {}

    def read(reader: MetaQuery, texts: list[str], seen: list[list[Any]]) -> Any:
        told["mllm"] = len(seen[0])
        return real(reader, texts, seen)

    real, forward = MetaQuery.read, KontextTransformer.forward

    def watched(transformer: Any, *arguments: Any, **named: Any) -> Any:
        told["dit"] = len(named.get("references", ()))
        return forward(transformer, *arguments, **named)

    monkeypatch.setattr(MetaQuery, "read", read)
    monkeypatch.setattr(KontextTransformer, "forward", watched)
    (picture,) = system.edit(Image.new("RGB", (64, 64), "red"), "make it blue", steps=1)
    assert told == {"mllm": int(reference != "dit"), "dit": int(reference != "mllm")}
    assert ("reference_to" in json.loads(picture.info["unipic"])) == (reference != "both")


def test_kontext_shows_no_language_model_a_picture() -> None:
    with pytest.raises(BadInput, match="Kontext has no language model"):
        UniPic.from_pretrained("tiny-kontext").edit(Image.new("RGB", (64, 64)), "more", steps=1, reference_to="mllm")


def test_a_dit_of_other_latents_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unipic.train.vae.MEASURED", 4)
    made = stage(STAGES["vae"])
    made.export(tmp_path / "other", {"vae": made.vae.state_dict()})  # the same weights, on another scale
    with pytest.raises(BadInput, match="different autoencoders"):
        stage(JOINT, place=False, transformer=str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("targets", "say"),
    [(["attn.to_q", "attn.to_qq"], "no layer ends so"), (["pos_embed.proj"], "not only linear layers end so")],
)
def test_an_adapter_is_for_linear_layers_that_are_there(targets: list[str], say: str) -> None:
    with pytest.raises(BadInput, match=say) as caught:
        stage(KONTEXT, lora={"rank": 2, "targets": targets})
    assert f"lora.targets: {targets[-1]}" in str(caught.value)


def test_a_lora_of_what_is_frozen_is_refused() -> None:
    with pytest.raises(BadInput, match="a LoRA is of the DiT"):
        stage(JOINT, place=False, lora=LORA, tune={"dit": False})


def test_a_text_is_right_where_all_three_encoders_find_its_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    made = stage(STAGES["text"])
    good, swapped = torch.eye(BATCH), torch.eye(BATCH).roll(1, 0)
    monkeypatch.setattr(made, "similarities", lambda _: [good, good, good])
    assert all(one.right for one in made.show())
    monkeypatch.setattr(made, "similarities", lambda _: [good, swapped, good])
    assert not any(one.right for one in made.show())


def test_the_language_model_is_also_asked_what_will_be_drawn() -> None:
    made = stage(STAGES["mllm"], show_count=8, data={"foresee": 1.0})
    assert len(made.show()) == 8


def test_pictures_larger_than_the_transformer_knows_are_refused(tmp_path: Path) -> None:
    Image.effect_noise((2048, 2048), 60).convert("RGB").save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"image": "a.png", "text": "noise"}\n')
    data = {"tasks": ["generate"], "sources": [{"kind": "folder", "path": str(tmp_path)}]}
    phases = [{"resolution": 64}, {"step": 5, "resolution": 1024}]
    with pytest.raises(BadInput, match="pictures of 1024x1024 have more positions than") as caught:
        stage(KONTEXT, place=False, data=data | {"phases": phases})
    assert "resolution 1024\nlower the resolution: sides of 256 at most" in str(caught.value)


def test_a_dit_that_the_connector_does_not_fit_is_refused(tmp_path: Path) -> None:
    tiny.make_kontext(tmp_path / "narrow")
    with pytest.raises(BadInput, match="joint_attention_dim is 128, and this one's is 64"):
        stage(JOINT, place=False, transformer=str(tmp_path / "narrow"))
