"""Published model folders: where they are and what lies in them.

A folder is data: class names in its JSON are labels of the closed table below, never imported; nothing in it is
executed; no file outside it is read (a hub cache's links into its own `blobs/` are inside), but of a folder that it
stands on. Layouts:

    Kontext      transformer/ vae/ scheduler/ text_encoder{,_2,_3}/ tokenizer{,_2,_3}/   model_index.json
    MetaQuery    transformer/ vae/ scheduler/ conditioner/    and mllm/, inside or as a folder of its own
    reward       reward_head/ mllm/

Our own folders add `unipic.json` (defaults) and `manifest.json` (size and SHA-256 of every file).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from unipic.errors import BadModel
from unipic.models.weights import HashCache
from unipic.types import DEFAULTS

FORMAT_VERSION = 1
JSON_LIMIT = 64 * 2**20  # bytes; the tokenizer.json of Qwen2.5 takes 7 MB


class Layout(NamedTuple):
    """How a component lies in its folder: which JSON describes it, under which class names, with which weights."""

    config: str
    labels: tuple[str, ...]
    weights: str | None = None


_CLIP_TOKENIZER = Layout("tokenizer_config.json", ("CLIPTokenizer", "CLIPTokenizerFast"))
_CLIP = Layout("config.json", ("CLIPTextModelWithProjection",), "model")
LAYOUTS = {
    "transformer": Layout(
        "config.json",
        ("SD3Transformer2DModel", "SD3Transformer2DKontextModel", "KontextTransformer"),
        "diffusion_pytorch_model",
    ),
    "vae": Layout("config.json", ("AutoencoderKL",), "diffusion_pytorch_model"),
    "scheduler": Layout("scheduler_config.json", ("FlowMatchEulerDiscreteScheduler",)),
    "conditioner": Layout("config.json", ("StableDiffusion3Conditioner",), "diffusion_pytorch_model"),
    "text_encoder": _CLIP,
    "text_encoder_2": _CLIP,
    "text_encoder_3": Layout("config.json", ("T5EncoderModel",), "model"),
    "tokenizer": _CLIP_TOKENIZER,
    "tokenizer_2": _CLIP_TOKENIZER,
    "tokenizer_3": Layout("tokenizer_config.json", ("T5Tokenizer", "T5TokenizerFast")),
    "mllm": Layout("config.json", ("Qwen2_5_VLForConditionalGeneration",), "model"),
    "reward_head": Layout("config.json", ("EditRewardHead",), "model"),
    "detector": Layout("config.json", ("Mask2FormerForUniversalSegmentation",), "model"),
    "clip": Layout("config.json", ("CLIPModel",), "model"),
}
KONTEXT = (
    "transformer",
    "vae",
    "scheduler",
    *(f"{n}{i}" for n in ("text_encoder", "tokenizer") for i in ("", "_2", "_3")),
)
METAQUERY = ("transformer", "vae", "scheduler", "conditioner")
REWARD = ("reward_head",)

# Attention is chosen by us; a stored wish for one of these is a hint, any other (a hub kernel) is refused.
_ATTENTION_HINTS = {None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"}
_CODE_KEYS = {"auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code", "custom_generate"}
_CODE_KEYS |= {"quantization_config"}  # brings kernels and libraries of its own; ours is --quantize


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder. name: what the user called it, for settings and messages.

    root: what its files must lie in, and where its manifest is. inside: the model's place in it, where that is deeper:
    "mllm" for a language model within a MetaQuery folder. under: another folder, which has what this one does not:
    an embedded model may be another with some files in their places.
    """

    root: Path
    name: str
    inside: str = ""
    under: ModelFolder | None = None
    hashes: HashCache = field(default_factory=HashCache, repr=False)

    @property
    def path(self) -> Path:
        return self.root / self.inside

    def file(self, relative: str) -> Path:
        """The path of a regular, non-empty file inside the folder, as the manifest (if any) knows it."""
        if under := self._under(relative):
            return under.file(relative)
        path = self.path / relative
        self._check_inside(path)
        if path.is_dir():
            raise BadModel("a folder stands where a file is needed", str(path), "download or save the model again")
        if not path.is_file():
            raise BadModel("the model is incomplete: a file is missing", str(path), "download or save the model again")
        if path.stat().st_size == 0:
            raise BadModel("the file is empty", str(path), "download or save the model again")
        if self.manifest:
            self._check_manifest(path, self.manifest.get(path.relative_to(self.root).as_posix()))
        return path

    def has(self, relative: str) -> bool:
        return _is_there(self.path / relative) or (self.under is not None and self._under(relative) is not None)

    def _under(self, relative: str) -> ModelFolder | None:
        """The folder under this one, where it has what this one does not."""
        if self.under is None or _is_there(self.path / relative):
            return None
        under = replace(self.under, inside=self.inside)
        return under if under.has(relative) else None

    def _check_inside(self, path: Path) -> None:
        """Real paths lie inside the folder, or inside `blobs/` of the same repository of a hub cache."""
        try:
            real, root = path.resolve(), self.root.resolve()
        except (OSError, RuntimeError):  # a loop of links
            raise BadModel("a file of the model is a link to nowhere", str(path), "download it again") from None
        homes = [root]
        if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
            homes.append(root.parent.parent / "blobs")
        if not any(real.is_relative_to(home) for home in homes):
            raise BadModel("a file of the model lies outside its folder", f"{path} -> {real}", "do not use this model")

    def _check_manifest(self, path: Path, known: Any) -> None:
        mend = "copy or save it again; if you changed it yourself, delete manifest.json"
        if not isinstance(known, dict):
            raise BadModel("manifest.json does not list the file", str(path), mend)
        if path.stat().st_size != known.get("size"):
            raise BadModel("the file has not the size that manifest.json says", str(path), mend)
        if self.hashes.sha256(path) != known.get("sha256"):
            raise BadModel("the file is not the one that manifest.json names", str(path), mend)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        path = self.root / "manifest.json"
        if not _is_there(path):
            return {}
        self._check_inside(path)
        if not path.is_file():
            raise BadModel("the manifest is no file", str(path), "save the model again")
        manifest = _parse_json(path)
        check_version(manifest, path)
        files = manifest.get("files")
        if not isinstance(files, dict):
            raise BadModel("the manifest lists no files", str(path), "save the model again")
        return files

    def json(self, relative: str) -> dict[str, Any]:
        """A JSON object that names no code."""
        path = self.file(relative)
        content = _parse_json(path)
        _refuse_code(content, path)
        return content

    def config(self, component: str, at: str | None = None) -> dict[str, Any]:
        """The JSON that describes a component; its class name must be one that we know there."""
        layout = LAYOUTS[component]
        relative = f"{component if at is None else at}/{layout.config}".lstrip("/")
        config = self.json(relative)
        for key in ("_class_name", "architectures", "tokenizer_class"):
            for label in as_list(config.get(key)):
                if label not in layout.labels:
                    raise BadModel(
                        f"{key} {label!r} is not a class of {component}",
                        str(self.path / relative),
                        f"known: {', '.join(layout.labels)}",
                    )
        return config

    def weights(self, component: str, at: str | None = None) -> list[Path]:
        """The safetensors files of a component: one, or the shards of its index."""
        where = component if at is None else at
        prefix = f"{where}/" if where else ""
        stem = f"{prefix}{LAYOUTS[component].weights}"
        if self.has(f"{stem}.safetensors"):
            return [self.file(f"{stem}.safetensors")]
        if self.has(f"{stem}.safetensors.index.json"):
            return [self.file(prefix + shard) for shard in self._shards(f"{stem}.safetensors.index.json")]
        folder = self.path / where
        pickles = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"))
        if pickles:
            raise BadModel(
                f"the weights are only there as pickle: {', '.join(pickles[:3])}",
                str(folder),
                "get or convert the .safetensors form; pickles can run code and are never read",
            )
        raise BadModel(
            "the model is incomplete: weights are missing", f"{self.path / stem}.safetensors", "download it again"
        )

    def _shards(self, index: str) -> list[str]:
        weight_map = self.json(index).get("weight_map")
        shards = sorted({str(v) for v in weight_map.values()}) if isinstance(weight_map, dict) else []
        if not shards:
            raise BadModel("the index names no shards", str(self.path / index), "download the model again")
        for shard in shards:
            if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", shard, re.ASCII):
                raise BadModel(f"the index names a file elsewhere: {shard!r}", str(self.path / index), "do not use it")
        return shards

    def check_subfolder(self, relative: str) -> Path:
        """A component's folder, all of whose files lie inside, and none of whose JSON names code."""
        if under := self._under(relative):
            return under.check_subfolder(relative)
        folder = self.path / relative
        self._check_inside(folder)
        if not folder.is_dir():
            raise BadModel("the model is incomplete: a folder is missing", str(folder), "download or save it again")
        for path in sorted(folder.rglob("*")):
            self._check_inside(path)
            if path.parent == folder and path.suffix == ".json" and not path.name.endswith(".index.json"):
                self.json(f"{relative}/{path.name}".lstrip("/"))
        return folder

    @cached_property
    def kind(self) -> str:
        """ "kontext", "metaquery" or "reward"; raises BadModel for a folder that is none of these."""
        if self.has("model_index.json"):
            self._check_model_index()
        if self.has("reward_head"):
            return "reward"
        if self.has("conditioner"):
            return "metaquery"
        if self.has("transformer") and self.has("text_encoder"):
            return "kontext"
        raise BadModel(
            "this folder is neither a Kontext nor a MetaQuery model",
            str(self.root),
            "it needs transformer/, vae/, scheduler/ and text_encoder/ (Kontext) or conditioner/ (MetaQuery)",
        )

    def _check_model_index(self) -> None:
        """The index is not needed, so it is only checked: its components may be of our classes, and no other."""
        path = self.root / "model_index.json"
        index = self.json("model_index.json")
        if not re.fullmatch(r"\w+", str(pipeline := index.get("_class_name")), re.ASCII):
            raise BadModel(f"it asks for a pipeline of its own: {pipeline!r}", str(path), "do not use this model")
        for component, entry in index.items():
            if component.startswith("_") or entry in (None, [None, None]) or not isinstance(entry, list):
                continue
            labels = LAYOUTS[component].labels if component in LAYOUTS else ()
            library, label = entry if len(entry) == 2 else (None, None)
            if label not in labels or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", str(library), re.ASCII):
                raise BadModel(
                    f"model_index.json asks for {component} {entry}", str(path), f"known: {', '.join(labels)}"
                )

    @cached_property
    def defaults(self) -> dict[str, dict[str, Any]]:
        """`unipic.json`'s defaults, by task; empty for folders of others."""
        if not self.has("unipic.json"):
            return {}
        path = self.root / "unipic.json"
        content = self.json("unipic.json")
        check_version(content, path)
        defaults: dict[str, dict[str, Any]] = content.get("defaults", {})
        if not isinstance(defaults, dict):
            raise BadModel("its defaults are no object", str(path), "correct it")
        for task, values in defaults.items():
            known = DEFAULTS.get(task)
            if known is None or not isinstance(values, dict):
                raise BadModel(f"unknown task {task!r}{did_you_mean(task, DEFAULTS)}", str(path), "correct it")
            for key, value in values.items():
                kinds = (int, float) if isinstance(known.get(key), float) else (type(known.get(key)),)
                if key not in known or type(value) not in kinds:
                    raise BadModel(f"bad default {key!r}: {value!r}{did_you_mean(key, known)}", str(path), "correct it")
        return defaults

    def components(self) -> tuple[str, ...]:
        return {"kontext": KONTEXT, "metaquery": METAQUERY, "reward": REWARD}[self.kind]

    def weights_hash(self, mllm: ModelFolder | None = None) -> str:
        """SHA-256 over the hashes of all weights that the model is made of."""
        files = [(c, p) for c in self.components() if LAYOUTS[c].weights for p in self.weights(c)]
        files += [("mllm", p) for p in mllm.weights("mllm", at="")] if mllm else []
        lines = [f"{component}/{path.name} {self.hashes.sha256(path)}\n" for component, path in files]
        return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def check_version(content: Mapping[str, Any], path: Path) -> None:
    version = content.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise BadModel(
            f"format version {version!r}; this unipic reads up to {FORMAT_VERSION}", str(path), "upgrade unipic"
        )


def did_you_mean(word: str, known: Any) -> str:
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()  # also one that leads nowhere


def _parse_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > JSON_LIMIT:
        raise BadModel(f"the file is larger than {JSON_LIMIT // 2**20} MiB", str(path), "this is no model's JSON")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadModel(f"the file is not JSON: {error}", str(path), "download or save the model again") from None
    if not isinstance(content, dict):
        raise BadModel("the file holds no JSON object", str(path), "download or save the model again")
    return content


def _refuse_code(content: Any, path: Path) -> None:
    """Refuse JSON that asks for code: remote modules, custom pipelines, attention kernels from a hub."""
    stack = [content]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack.extend(v for v in value if isinstance(v, list | dict))
        if not isinstance(value, dict):
            continue
        for key, inner in value.items():
            if key in _CODE_KEYS and inner:
                raise BadModel(
                    f"it asks to run code of its own: {key}", str(path), "do not use it, or remove that entry"
                )
            if key.lstrip("_").startswith("attn_implementation"):
                hints = inner.values() if isinstance(inner, dict) else [inner]
                if not all(isinstance(h, str | None) and h in _ATTENTION_HINTS for h in hints):
                    raise BadModel(f"it asks for attention code from a hub: {inner!r}", str(path), "remove that entry")
            if isinstance(inner, list | dict):
                stack.append(inner)
