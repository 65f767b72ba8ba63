"""Adapters, merged, against peft running them unmerged."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from unipic import BadModel, UniPic
from unipic.models.kontext import KontextTransformer
from unipic.models.lora import merge_lora

TARGETS = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.to_add_out"]


@pytest.fixture
def transformer(kontext: UniPic) -> KontextTransformer:
    with kontext.parts.transformer.use() as part:
        return copy.deepcopy(part)


def trained(transformer: KontextTransformer, folder: Path, **options: object) -> torch.Tensor:
    """Save a random peft adapter; return what the adapted model computes."""
    torch.manual_seed(0)
    adapted = get_peft_model(
        copy.deepcopy(transformer),
        LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights=False, **options),
    )
    adapted.save_pretrained(folder)
    with torch.no_grad():
        return adapted(*inputs())


def inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    shapes = (1, 16, 4, 6), (1, 5, 128), (1, 64)
    return *(torch.randn(*shape, generator=generator) for shape in shapes), torch.tensor([500.0])


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}])
def test_merging_equals_peft(transformer: KontextTransformer, tmp_path: Path, options: dict[str, object]) -> None:
    wanted = trained(transformer, tmp_path, **options)
    with torch.no_grad():
        before = transformer(*inputs())
        merge_lora(transformer, str(tmp_path))
        got = transformer(*inputs())
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert float((got - before).abs().max()) > 1e-2


def test_diffusers_file_with_alphas(transformer: KontextTransformer, tmp_path: Path) -> None:
    """The same adapter as a single file under diffusers' names, α beside each layer."""
    wanted = trained(transformer, tmp_path / "peft")
    stored = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    renamed = {k.replace("base_model.model.", "transformer."): v for k, v in stored.items()}
    alphas = {k.replace("lora_A.weight", "alpha"): torch.tensor(8.0) for k in renamed if "lora_A" in k}
    save_file(renamed | alphas, tmp_path / "mine.safetensors")
    merge_lora(transformer, str(tmp_path / "mine.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(transformer(*inputs()), wanted, rtol=1e-4, atol=1e-5)


def test_what_diffusers_pipelines_save(transformer: KontextTransformer, tmp_path: Path) -> None:
    """pytorch_lora_weights.safetensors, whose α and rank stand in the file's metadata alone."""
    torch.manual_seed(0)
    adapted = copy.deepcopy(transformer)
    adapted.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights=False))
    StableDiffusion3Pipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(adapted),
        **_collate_lora_metadata({"transformer": adapted}),
    )
    merge_lora(transformer, str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(transformer(*inputs()), adapted(*inputs()), rtol=1e-4, atol=1e-5)


def test_an_adapter_shows_in_pictures_and_settings(transformer: KontextTransformer, tmp_path: Path) -> None:
    trained(transformer, tmp_path / "lora")
    plain, adapted = (UniPic.from_pretrained("tiny-kontext", lora=lora) for lora in (None, tmp_path / "lora"))
    a, b = (system.generate("a ring", steps=2)[0] for system in (plain, adapted))
    assert a.tobytes() != b.tobytes()
    assert '"lora"' in b.info["unipic"]
    adapted.save_pretrained(tmp_path / "merged")
    merged = UniPic.from_pretrained(tmp_path / "merged").generate("a ring", steps=2)[0]
    assert merged.tobytes() == b.tobytes()


def test_an_adapter_for_another_model_is_refused(transformer: KontextTransformer, tmp_path: Path) -> None:
    save_file(
        {
            "transformer.nowhere.lora_A.weight": torch.zeros(2, 8),
            "transformer.nowhere.lora_B.weight": torch.zeros(8, 2),
        },
        tmp_path / "other.safetensors",
    )
    with pytest.raises(BadModel, match="nowhere"):
        merge_lora(transformer, str(tmp_path / "other.safetensors"))
