"""The stages by name, and how a recipe becomes one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from unipic.config import read_recipe, resolve
from unipic.train.align import AlignConfig, AlignStage
from unipic.train.joint import JointConfig, JointStage
from unipic.train.kontext import KontextConfig, KontextStage
from unipic.train.loop import Stage
from unipic.train.mllm import MllmConfig, MllmStage
from unipic.train.text import TextConfig, TextStage
from unipic.train.vae import VaeConfig, VaeStage

AnyConfig = Annotated[
    VaeConfig | TextConfig | MllmConfig | KontextConfig | AlignConfig | JointConfig, Field(discriminator="stage")
]
STAGES: dict[str, Callable[[Any], Stage]] = {
    "vae": VaeStage,
    "text": TextStage,
    "mllm": MllmStage,
    "kontext": KontextStage,
    "align": AlignStage,
    "joint": JointStage,
}


def read(recipe: str, sets: Sequence[str] = ()) -> Any:
    """The resolved configuration of a recipe, packaged or a file, under `sets` ("a.b=c"). Raises BadInput."""
    raw, where = read_recipe(recipe)
    return resolve(TypeAdapter(AnyConfig), raw, where, sets)


def stage_of(config: Any) -> Stage:
    return STAGES[config.stage](config)
