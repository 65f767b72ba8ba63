"""Whole generations against diffusers' pipeline, and edits against a loop written by hand."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from tests.reference.sd3 import ReferenceSD3
from unipic import BadInput, UniPic, UnipicError, pictures
from unipic.types import Request, SkipLayerGuidance


def grey_levels(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())


@pytest.fixture(scope="module")
def stock(kontext: UniPic) -> StableDiffusion3Pipeline:
    """diffusers' pipeline over the very same weights and tokenizers."""
    parts = kontext.parts
    with parts.transformer.use() as transformer, parts.vae.use() as vae, parts.text.use() as text:
        from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

        plain = SD3Transformer2DModel.from_config(transformer.config)
        plain.load_state_dict(transformer.state_dict())
        pipeline = StableDiffusion3Pipeline(
            transformer=plain,
            vae=vae.module,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=parts.spec.shift),
            text_encoder=text.clips[0],
            text_encoder_2=text.clips[1],
            text_encoder_3=text.t5,
            tokenizer=text.clip_tokenizers[0],
            tokenizer_2=text.clip_tokenizers[1],
            tokenizer_3=text.t5_tokenizer,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(
    ("width", "height", "scale", "negative", "skip"),
    [(64, 64, 3.5, "", None), (96, 64, 5.0, "a black square", None), (64, 128, 1.0, "", None), (64, 64, 4.0, "", (1,))],
)
def test_generation_equals_diffusers(
    kontext: UniPic,
    stock: StableDiffusion3Pipeline,
    width: int,
    height: int,
    scale: float,
    negative: str,
    skip: tuple[int, ...] | None,
) -> None:
    """8 steps with guidance (also with skip-layer guidance): within one grey level."""
    theirs = stock(
        "a red circle above a blue ring",
        negative_prompt=negative,
        width=width,
        height=height,
        num_inference_steps=8,
        guidance_scale=scale,
        generator=torch.Generator().manual_seed(7),
        max_sequence_length=48,
        skip_guidance_layers=list(skip) if skip else None,
        skip_layer_guidance_stop=0.5,
    ).images[0]
    ours = kontext.generate(
        "a red circle above a blue ring",
        negative_prompt=negative,
        width=width,
        height=height,
        steps=8,
        guidance_scale=scale,
        seed=7,
        skip_layers=SkipLayerGuidance(skip, stop=0.5) if skip else None,
    )[0]
    assert grey_levels(ours, theirs) <= 1
    assert np.asarray(ours).std() > 5


def test_an_edit_equals_a_float64_loop(kontext: UniPic) -> None:
    """Two references, guidance with the references on both sides, σ from the formula, latents by hand."""
    source, other = noise_picture(64, 96, 1), noise_picture(96, 64, 2)
    ours = kontext.edit(
        source,
        "make it blue",
        references=[other],
        image_size=96,
        steps=4,
        guidance_scale=3.0,
        seed=5,
        negative_prompt="x",
    )[0]

    parts = kontext.parts
    with parts.transformer.use() as transformer, parts.vae.use() as vae, parts.text.use() as text:
        twin = ReferenceSD3(transformer.state_dict(), dict(transformer.config))
        condition, negative = text.encode(["make it blue"]), text.encode(["x"])
        latents = []
        for picture in (source, other):
            pixels = torch.tensor(np.asarray(picture) / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)[None]
            mean = vae.module.encode(pixels).latent_dist.mean
            latents.append((mean - vae.module.config.shift_factor) * vae.module.config.scaling_factor)
        x = torch.randn(1, 16, 12, 8, generator=torch.Generator().manual_seed(5)).double()
        levels = shifted_levels(steps=4, shift=3.0)
        with torch.no_grad():
            for now, after in pairwise(levels):
                timestep = torch.tensor([1000 * now])
                v = twin(x, condition.tokens, condition.pooled, timestep, latents)
                v_negative = twin(x, negative.tokens, negative.pooled, timestep, latents)
                x = x + (after - now) * (v_negative + 3.0 * (v - v_negative))
        expected = vae.decode(x)
    assert ours.size == (64, 96)
    assert grey_levels(ours, expected) <= 1


def shifted_levels(steps: int, shift: float) -> list[float]:
    bend = lambda s: shift * s / (1 + (shift - 1) * s)  # noqa: E731
    lowest = bend(1 / 1000)
    return [bend(1 + (lowest - 1) * i / (steps - 1)) for i in range(steps)] + [0.0]


def noise_picture(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def requests(seed: int, count: int) -> list[Request]:
    """Generations and edits of many sizes, steps, scales and reference counts."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        references = tuple(
            noise_picture(*(32 * int(n) for n in rng.integers(1, 4, 2)), seed=int(rng.integers(4)))
            for _ in range(rng.integers(0, 3))
        )
        found.append(
            Request(
                prompt=str(rng.choice(["a red circle", "make it blue", "remove the star above"])),
                negative_prompt=str(rng.choice(["", "black"])),
                width=16 * int(rng.integers(2, 7)),
                height=16 * int(rng.integers(2, 7)),
                seed=int(rng.integers(2**63)),
                steps=int(rng.integers(1, 4)),
                guidance_scale=float(rng.choice([1.0, 3.5])),
                guidance_interval=None if rng.integers(3) else (0.2, 0.8),
                references=references,
            )
        )
    return found


def test_company_changes_no_byte(system: UniPic) -> None:
    """100 requests a model in shuffled batches of 1 to 8: 0 byte differences from the same requests alone."""
    rng = np.random.default_rng(0)
    wanted = requests(seed=0, count=100)
    alone = [pictures.png_bytes(system.run([request])[0]) for request in wanted]
    order = list(rng.permutation(len(wanted)))
    different = 0
    while order:
        batch, order = order[: (size := int(rng.integers(1, 9)))], order[size:]
        results = system.run([wanted[i] for i in batch])
        different += sum(pictures.png_bytes(r) != alone[i] for i, r in zip(batch, results, strict=True))
    assert different == 0


def test_fast_batch_stays_within_one_grey_level(system: UniPic) -> None:
    wanted = [
        Request("a red circle", 64, 64, seed=i, steps=4, guidance_scale=2.0 + i, references=references)
        for i in range(6)
        for references in ((), (noise_picture(64, 64, i),))
    ]
    exact, fast = system.run(wanted), system.run(wanted, fast_batch=True)
    assert max(grey_levels(a, b) for a, b in zip(exact, fast, strict=True)) <= 1


def test_many_pictures_have_consecutive_seeds(system: UniPic) -> None:
    three = system.generate("a star", num_images=3, seed=10, steps=2)
    single = system.generate("a star", seed=12, steps=2)
    assert pictures.png_bytes(three[2]) == pictures.png_bytes(single[0])
    assert pictures.png_bytes(three[0]) != pictures.png_bytes(three[1])


def test_batches_of_edits_pair_pictures_and_instructions(system: UniPic) -> None:
    sources = [noise_picture(64, 64, 1), noise_picture(100, 70, 2)]
    both = system.edit(sources, ["make it red", "make it blue"], steps=2)
    alone = [system.edit(s, t, steps=2)[0] for s, t in zip(sources, ["make it red", "make it blue"], strict=True)]
    assert [pictures.png_bytes(a) for a in both] == [pictures.png_bytes(b) for b in alone]
    assert [picture.size for picture in both] == [(64, 64), (64, 32)]
    with pytest.raises(BadInput, match="pair up"):
        system.edit(sources, ["one"] * 3)


def test_everything_a_request_says_shows(system: UniPic) -> None:
    """Prompt, negative prompt, seed, scale, interval and every reference change the picture."""
    source, other = noise_picture(64, 64, 1), noise_picture(64, 64, 2)
    base = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 3, "references": (source, other)}
    changes = [
        {},
        {"prompt": "two blue stars"},
        {"negative_prompt": "black"},
        {"seed": 1},
        {"guidance_scale": 2.0},
        {"guidance_interval": (0.0, 0.5)},
        {"skip_layers": SkipLayerGuidance((1,), start=0.0, stop=1.0)},
        {"references": (other, other)},
        {"references": (source, source)},
        {"references": (source,)},
        {"references": ()},
    ]
    made = [system.run([Request(**{**base, **change})])[0] for change in changes]
    assert len({picture.tobytes() for picture in made}) == len(changes)


def test_guidance_interval_turns_guidance_off_outside(kontext: UniPic) -> None:
    ask = {"prompt": "a ring", "width": 64, "height": 64, "steps": 4}
    never = kontext.run([Request(**ask, guidance_interval=(0.0, 0.0))])[0]
    unguided = kontext.run([Request(**ask, guidance_scale=1.0)])[0]
    always = kontext.run([Request(**ask, guidance_interval=(0.0, 1.0))])[0]
    assert grey_levels(never, unguided) <= 1
    assert always.tobytes() == kontext.run([Request(**ask)])[0].tobytes()


def test_skip_layer_guidance_keeps_the_reference(kontext: UniPic) -> None:
    """The weaker branch sees the reference too: with all its layers kept, the extra push is zero."""
    ask = {"prompt": "a ring", "width": 64, "height": 64, "steps": 2, "references": (noise_picture(64, 64, 1),)}
    plain = kontext.run([Request(**ask)])[0]
    pushed = kontext.run([Request(**ask, skip_layers=SkipLayerGuidance((), start=0.0, stop=1.0))])[0]
    assert grey_levels(plain, pushed) <= 1


def test_progress_and_previews(system: UniPic) -> None:
    seen = []
    results = system.generate("a heart", num_images=2, steps=3, on_step=seen.append)
    assert [(p.picture, p.step, p.steps) for p in seen] == [(i, s, 3) for i in range(2) for s in (1, 2, 3)]
    assert seen[2].sigma == 0.0
    assert seen[2].preview().tobytes() == results[0].tobytes()  # at the end the estimate is the picture
    assert seen[0].preview().size == (64, 64)


def test_keep_size(system: UniPic) -> None:
    source = noise_picture(201, 133, 3)
    working, kept = (system.edit(source, "make it red", steps=1, keep_size=keep)[0] for keep in (False, True))
    assert (working.size, kept.size) == ((64, 32), (201, 133))
    settings = json.loads(kept.info["unipic"])
    assert settings.pop("keep_size") == [201, 133]
    assert settings == json.loads(working.info["unipic"])
    with pytest.raises(BadInput, match="keep"):
        system.edit(source, "make it red", width=64, keep_size=True)


def test_one_picture_takes_several_instructions(system: UniPic) -> None:
    source = noise_picture(64, 64, 1)
    both = system.edit(source, ["make it red", "make it blue"], steps=1)
    assert both[1].tobytes() == system.edit(source, "make it blue", steps=1)[0].tobytes()
    assert both[0].tobytes() != both[1].tobytes()


def test_references_of_a_request_are_checked(system: UniPic) -> None:
    ask = {"prompt": "a ring", "width": 64, "height": 64, "steps": 1}
    for wrong, what in (
        (noise_picture(512, 64, 1), "width of a reference"),
        (noise_picture(64, 72, 1), "height of a reference"),
        (noise_picture(64, 64, 1).convert("RGBA"), "RGBA"),
    ):
        with pytest.raises(BadInput, match=what):
            system.run([Request(**ask, references=(wrong,))])


def test_what_cannot_act_is_refused(system: UniPic) -> None:
    with pytest.raises(BadInput, match="needs guidance"):
        system.generate("a ring", guidance_scale=1.0, skip_layers=SkipLayerGuidance((1,)))
    with pytest.raises(BadInput, match="no pair"):
        system.generate("a ring", guidance_interval=0.5)
    with pytest.raises(BadInput, match="no picture"):
        system.describe([])


def test_nan_is_an_error_and_no_black_picture(kontext: UniPic) -> None:
    with kontext.parts.vae.use() as vae, pytest.raises(UnipicError, match="NaN"):
        vae.decode(torch.full((1, 16, 8, 8), float("nan")))


def test_a_fast_batch_is_cut_into_pieces(kontext: UniPic, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    with kontext.parts.transformer.use() as transformer:
        handle = transformer.register_forward_pre_hook(
            lambda _, args, kwargs: sizes.append(len(args[0])), with_kwargs=True
        )
        kontext.generate("a ring", num_images=20, steps=1, fast_batch=True)
        handle.remove()
    assert sizes == [16, 16, 8]


def test_large_pictures_are_tiled(kontext: UniPic, monkeypatch: pytest.MonkeyPatch) -> None:
    with kontext.parts.vae.use() as vae, monkeypatch.context() as patch:
        patch.setattr(vae, "tile_above", 64 * 64)
        tiled = kontext.generate("a ring", width=128, height=128, steps=1)[0]
        assert vae.module.use_tiling
        small = kontext.generate("a ring", steps=1)[0]
        assert not vae.module.use_tiling
    whole = kontext.generate("a ring", width=128, height=128, steps=1)[0]
    assert small.size == (64, 64)
    assert grey_levels(tiled, whole) > 0
    assert np.abs(np.asarray(tiled, int) - np.asarray(whole, int)).mean() < 32  # blended tiles, not another picture


def test_saving_copies_data_only(kontext: UniPic, tmp_path: Path) -> None:
    shutil.copytree(kontext.parts.folder.root, tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    (tmp_path / "model" / "vae" / "modeling.py").write_text("")
    (tmp_path / "model" / "vae" / "weights.bin").write_text("")
    UniPic.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "saved")
    assert {p.name for p in (tmp_path / "saved" / "vae").iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }


def test_saved_models_load_again(system: UniPic, tmp_path: Path) -> None:
    system.generate("a ring", steps=1)
    system.save_pretrained(tmp_path / "saved")
    again = UniPic.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.generate("a ring", steps=2)[0].tobytes() == system.generate("a ring", steps=2)[0].tobytes()
    assert again.defaults == system.defaults
    with pytest.raises(BadInput, match="already"):
        system.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.glob(".*"))
