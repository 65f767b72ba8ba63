"""Rewards as recipes name them. What loads models is imported when one is opened: recipes are read without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from unipic.config import Strict
from unipic.data.source import Task
from unipic.errors import BadInput
from unipic.models.find import find_model, find_part
from unipic.rewards.brightness import BrightnessReward
from unipic.rewards.geneval import CLIP, DETECTOR, GenevalReward
from unipic.rewards.judge import JudgeRewardConfig
from unipic.rewards.judge_templates import read_templates
from unipic.rewards.ocr import OcrReward
from unipic.rewards.remote import RemoteRewardConfig
from unipic.rewards.reward import Reward, WeightedSum
from unipic.rewards.world import WorldReward


class WorldRewardConfig(Strict):
    """The embedded world's verifier. soft: of prompts how near a picture is to right, rather than 1 or 0.

    mark: in place of the score "pq"; "sc", of edits alone; "clean", of edits √(PQ · what was kept), of all else PQ; or
    "near": how near to right a picture is, of edits by pixels.
    """

    kind: Literal["world"]
    weight: float = 1.0
    soft: bool = True
    mark: Literal["sc", "pq", "near", "clean"] | None = None

    def open(self) -> Reward:
        return WorldReward(self.soft, self.mark)


class BrightnessRewardConfig(Strict):
    """See `BrightnessReward`."""

    kind: Literal["brightness"]
    weight: float = 1.0

    def open(self) -> Reward:
        return BrightnessReward()


class EditRewardConfig(Strict):
    """A trained model that judges edits (see `EditReward`). model: the embedded one, a folder, or a hub name.

    output: which of its scores.
    """

    kind: Literal["edit_reward"]
    weight: float = 1.0
    model: str = "tiny-edit-reward"
    output: Literal["instruction_following", "quality", "overall"] = "overall"
    batch: Annotated[int, Field(ge=1)] = 16
    device: str = "auto"
    dtype: str = "auto"

    def open(self) -> Reward:
        from unipic.rewards.edit_reward import EditReward

        return EditReward(self.model, self.output, self.batch, self.device, self.dtype)


class GenevalRewardConfig(Strict):
    """GenEval's verdict (see `GenevalReward`). soft: how near a picture is to right, rather than 1 or 0.

    detector, clip: folders, or hub names in the hub's cache; loaded when first used. batch: pictures in a forward of
    the detector, objects in one of CLIP.
    """

    kind: Literal["geneval"]
    weight: float = 1.0
    soft: bool = True
    detector: str = DETECTOR
    clip: str = CLIP
    batch: Annotated[int, Field(ge=1)] = 16
    device: str = "auto"

    def open(self) -> Reward:
        from unipic.rewards.colors import Colors
        from unipic.rewards.detector import Detector

        detector = Detector(self.detector, self.batch, self.device)
        return GenevalReward(detector, Colors(self.clip, self.batch, self.device), self.soft)


class OcrRewardConfig(Strict):
    """See `OcrReward`."""

    kind: Literal["ocr"]
    weight: float = 1.0
    ignore_case: bool = True
    ignore_spaces: bool = True
    anywhere: bool = False
    threads: Annotated[int, Field(ge=1, le=256)] = 1

    def open(self) -> Reward:
        return OcrReward(self.ignore_case, self.ignore_spaces, self.anywhere, self.threads)


RewardConfig = Annotated[
    WorldRewardConfig
    | BrightnessRewardConfig
    | EditRewardConfig
    | GenevalRewardConfig
    | JudgeRewardConfig
    | RemoteRewardConfig
    | OcrRewardConfig,
    Field(discriminator="kind"),
]
Rewards = dict[str, RewardConfig]
"""By a name of the user's"""


MAY_BE_AWAY = (JudgeRewardConfig, RemoteRewardConfig)  # what has no score of theirs may have one later


def check(group: str, rewards: Mapping[str, RewardConfig], tasks: Sequence[Task]) -> None:
    """Raise UnipicError for what they need that is not there, and BadInput for one that scores none of the tasks, and
    for a task that none of them scores.

    group: what the recipe calls them. Of judges and reward servers no call is made, of EditReward and GenEval's
    detector no weights are loaded.
    """
    asked = f"tasks: {', '.join(dict.fromkeys(tasks))}"
    for name, reward in rewards.items():
        match reward:
            case EditRewardConfig():
                if (folder := find_model(reward.model)).kind != "reward":
                    mend = "give one that `unipic train` made of an edit-reward recipe"
                    raise BadInput("this is no reward model", f"{name}: {folder.root}", mend)
            case GenevalRewardConfig():
                find_part(reward.detector, "detector")
                find_part(reward.clip, "clip")
            case _:
                reward.open()
        if not any(of_task(reward, task) for task in tasks):
            where = f"{group}: {name}; {asked}"
            raise BadInput(f"this reward never scores task {tasks[0]}", where, "give another one to these tasks")
    unscored = [task for task in tasks if not any(of_task(reward, task) for reward in rewards.values())]
    if rewards and unscored:
        where = f"{group}: {', '.join(rewards)}; {asked}"
        raise BadInput(f"none of these rewards ever scores task {unscored[0]}", where, "add one that does")


def of_task(reward: RewardConfig, task: Task) -> bool:
    """Whether it is of a task at all: EditReward and SC are of edits, GenEval's metadata of prompts, and a judge scores
    what its template asks of.
    """
    match reward:
        case EditRewardConfig() | WorldRewardConfig(mark="sc"):
            return task == "edit"
        case GenevalRewardConfig():
            return task == "generate"
        case JudgeRewardConfig():
            return getattr(read_templates(reward.template), task) is not None
    return True


def of_another(rewards: Mapping[str, RewardConfig], task: Task) -> frozenset[str]:
    """The names of those that never score a task."""
    return frozenset(name for name, reward in rewards.items() if not of_task(reward, task))


def opened(rewards: Mapping[str, RewardConfig]) -> WeightedSum:
    return WeightedSum({name: (reward.weight, reward.open()) for name, reward in rewards.items()})
