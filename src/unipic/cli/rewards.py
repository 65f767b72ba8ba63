"""`unipic serve-reward`."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

import typer

from unipic.cli.options import option

OF_MACHINES = {"weight", "device", "batch", "threads"}  # settings that may differ where scores are the same


def serve_reward(
    name: Annotated[
        str, typer.Argument(help="a kind, such as world, or a .yaml file with a reward as recipes have it")
    ],
    host: Annotated[str, option("address to listen at")] = "127.0.0.1",
    port: Annotated[int, option("0 takes a free one")] = 8002,
    api_key: Annotated[str | None, option("clients must bring it", envvar="UNIPIC_REWARD_KEY")] = None,
    workers: Annotated[int, option("requests scored at a time, a thread each")] = 16,
) -> None:
    """Serve a reward over HTTP, for rewards of kind `remote` in the recipes of other machines."""
    from pydantic import TypeAdapter

    from unipic.config import read_recipe, resolve
    from unipic.rewards import wire
    from unipic.rewards.configs import RewardConfig
    from unipic.serve.reward import serve_reward as serve
    from unipic.types import check_whole

    check_whole("port", port, 0, 65_535)
    check_whole("number of workers", workers, 1, 256)
    api_key = None if api_key is None else wire.checked_key(api_key, "--api-key, or UNIPIC_REWARD_KEY")
    a_file = name.endswith((".yaml", ".yml"))
    raw, where = read_recipe(name) if a_file else ({"kind": name}, f"serve-reward {name}")
    adapter: TypeAdapter[RewardConfig] = TypeAdapter(RewardConfig)
    config = resolve(adapter, raw, where)
    settings = config.model_dump(mode="json", exclude=OF_MACHINES | set(getattr(config, "may_change", ())))
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()  # paths are nobody's business
    serve(config.open(), f"{config.kind} {digest[:12]}", host, port, api_key=api_key, workers=workers)
