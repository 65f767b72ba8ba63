"""The stages by name, and how a recipe becomes one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from unipic.config import read_recipe, recipes, resolve
from unipic.errors import BadInput
from unipic.train.align import AlignConfig, AlignStage
from unipic.train.edit_scores import EditScoresConfig, make_scores
from unipic.train.grpo import GrpoConfig, GrpoStage
from unipic.train.joint import JointConfig, JointStage
from unipic.train.kontext import KontextConfig, KontextStage
from unipic.train.loop import Stage, train
from unipic.train.mllm import MllmConfig, MllmStage
from unipic.train.nft import NftConfig, NftStage
from unipic.train.pdtr import PdtrConfig, reinforce
from unipic.train.reward import EditRewardStage, TrainRewardConfig
from unipic.train.text import TextConfig, TextStage
from unipic.train.vae import VaeConfig, VaeStage

AnyConfig = Annotated[
    VaeConfig
    | TextConfig
    | MllmConfig
    | KontextConfig
    | AlignConfig
    | JointConfig
    | GrpoConfig
    | NftConfig
    | PdtrConfig
    | EditScoresConfig
    | TrainRewardConfig,
    Field(discriminator="stage"),
]
STAGES: dict[str, Callable[[Any], Stage]] = {
    "vae": VaeStage,
    "text": TextStage,
    "mllm": MllmStage,
    "kontext": KontextStage,
    "align": AlignStage,
    "joint": JointStage,
    "grpo": GrpoStage,
    "nft": NftStage,
    "edit-reward": EditRewardStage,
}


def read(recipe: str, sets: Sequence[str] = ()) -> Any:
    """The resolved configuration of a recipe, packaged or a file, under `sets` ("a.b=c"). Raises BadInput."""
    raw, where = read_recipe(recipe)
    return resolve(TypeAdapter(AnyConfig), raw, where, sets)


def stage_of(config: Any) -> Stage:
    """The stage of a resolved configuration. Raises BadInput for data or models that it cannot start from."""
    try:
        return STAGES[config.stage](config)
    except BadInput as error:
        command = _maker(error.where)
        if command is None or Path(error.where).exists():
            raise
        raise BadInput(error.what, error.where, f"run `{command}` first") from None


def run_recipe(config: Any, run: Path) -> Path:
    """Do as a resolved configuration says, in a run's folder. Returns the folder of the trained model, or the data."""
    if isinstance(config, PdtrConfig):
        return reinforce(config, run)
    if isinstance(config, EditScoresConfig):
        return make_scores(config, run)
    return train(stage_of(config), run)


def _maker(folder: str) -> str | None:
    """What makes a folder that the packaged recipes start from."""
    match Path(folder).parts:
        case ("runs", *recipe, "model" | "data") if (name := "/".join(recipe)) in recipes():
            return f"unipic train {name}"
        case ("runs", "tiny", "blank", _):
            return "python -m unipic.models.tiny runs/tiny/blank --to-train"
    return None
