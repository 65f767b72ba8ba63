"""Model folders that are broken or hostile, each in one way, and odd ones that are neither.

A case takes a fresh copy of an embedded model, without its manifest (so that the fault is found, not the changed hash),
in a place of its own:

    model/      the copy; every folder in it holds modeling_evil.py, which its JSON may name
    outside/    what nobody may read: the targets of links and paths that lead out of the model
    adapter/    where a case is about one: the adapter to load with the model
    canary      appears when code from the folder has run
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import unipic
from unipic import UniPic

ASSETS = Path(unipic.__file__).parent / "assets"
TINY, KONTEXT = "tiny", "tiny-kontext"
# An edit reads the VAE first, so that most cases are about it.
VAE = "vae/diffusion_pytorch_model.safetensors"
INDEX = f"{VAE}.index.json"
CONFIG = "vae/config.json"
BIAS = "decoder.conv_out.bias"  # three numbers of the VAE
DIT = "transformer/diffusion_pytorch_model.safetensors"
LAYER = "transformer_blocks.0.attn.to_q"  # a linear layer of the DiT, 128 to 128
CONDITIONER = "conditioner/diffusion_pytorch_model.safetensors"
MLLM = "mllm/model.safetensors"
CLIP = "text_encoder/model.safetensors"
ADAPTER = "adapter/adapter_model.safetensors"
REMOVED: Any = object()  # in place of a value: take it away
LIMIT = 5  # seconds to use a folder


class TooLong(BaseException):
    """A folder was not done with in time; no Exception, which would be taken for the folder's fault."""


class Case(NamedTuple):
    """name: what is odd. model, job: what is copied, and what needs the odd part. says: what a refusal must tell.

    alter: makes a good folder odd; it may return where the folder is now.
    """

    name: str
    model: str
    job: str
    alter: Callable[[Path], Path | None]
    says: tuple[str, ...] = ()


REFUSED: list[Case] = []
ACCEPTED: list[Case] = []
HARMLESS: list[Case] = []  # may be refused or used, but must not crash


def refuse(name: str, model: str, job: str, alter: Callable[[Path], Path | None], *says: str) -> None:
    REFUSED.append(Case(name, model, job, alter, says))


def refused(model: str, job: str, *says: str) -> Callable[[Any], Any]:
    """A decorator for the `alter` of a case that must be refused."""

    def register(alter: Any) -> Any:
        refuse(alter.__name__, model, job, alter, *says)
        return alter

    return register


def refuse_settings(model: str, job: str, file: str, rows: Mapping[str, Any]) -> None:
    """Cases that change one JSON file. rows: name → (changes, *what the refusal tells besides the file)."""
    for name, (changes, *says) in rows.items():
        refuse(name, model, job, partial(change, relative=file, changes=changes), file, *says)


def accepted(model: str, *jobs: str) -> Callable[[Any], Any]:
    """A decorator for the `alter` of a case that must not."""

    def register(alter: Any) -> Any:
        ACCEPTED.extend(Case(f"{alter.__name__}-{model}-{job}", model, job, alter) for job in jobs)
        return alter

    return register


def stage(case: Case, place: Path) -> Path:
    """The folder of a case, made in an empty place."""
    model = place / "model"
    shutil.copytree(ASSETS / case.model, model)
    (model / "manifest.json").unlink()
    outside(model).mkdir()
    for folder in (model, *(p for p in model.iterdir() if p.is_dir())):
        (folder / "modeling_evil.py").write_text(f"open({str(canary(model))!r}, 'w')\n")
    return case.alter(model) or model


def use(model: Path, job: str) -> None:
    """Load a model, with the adapter that lies beside it, and do the job."""
    adapter = model.parent / "adapter"
    picture = Image.new("RGB", (64, 64), "red")
    with time_limit():
        system = UniPic.from_pretrained(model, device="cpu", lora=adapter if adapter.exists() else None)
        if job == "generate":
            system.generate("a red circle", width=64, height=64, steps=1)
        elif job == "edit":
            system.edit(picture, "make it blue", image_size=64, steps=1)
        elif job == "save":
            system.save_pretrained(model.parent / "saved")
        else:
            system.describe(picture, max_new_tokens=1)


@contextmanager
def time_limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def canary(model: Path) -> Path:
    return model.parent.resolve() / "canary"


def outside(model: Path) -> Path:
    return model.parent.resolve() / "outside"


# --- tools ------------------------------------------------------------------------------------------------------------


def pickle_of(model: Path) -> bytes:
    """A pickle that makes the canary when it is read: `open(canary, "w")`."""
    path = str(canary(model)).encode()
    return b"\x80\x02cbuiltins\nopen\nX" + struct.pack("<I", len(path)) + path + b"X\x01\x00\x00\x00w\x86R."


def write(model: Path, relative: str, content: str | bytes) -> None:
    (model / relative).write_bytes(content.encode() if isinstance(content, str) else content)


def remove(model: Path, relative: str) -> None:
    path = model / relative
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def change(model: Path, relative: str, changes: Mapping[str, Any]) -> None:
    """Change settings of a JSON file, which need not be there; dots lead inwards."""
    path = model / relative
    content = json.loads(path.read_text()) if path.exists() else {}
    for key, value in changes.items():
        *outer, last = key.split(".")
        inner = content
        for step in outer:
            inner = inner[step]
        if value is REMOVED:
            del inner[last]
        else:
            inner[last] = value
    path.write_text(json.dumps(content))


def tensors_of(model: Path, relative: str) -> dict[str, torch.Tensor]:
    """A file's tensors; what is there in shards becomes that one file first."""
    if not (model / relative).exists():
        places = json.loads((model / f"{relative}.index.json").read_text())["weight_map"]
        shards = [str(Path(relative).with_name(name)) for name in sorted(set(places.values()))]
        whole = {name: tensor for file in shards for name, tensor in load_file(model / file).items()}
        for file in (*shards, f"{relative}.index.json"):
            remove(model, file)
        save_file(whole, model / relative)
    return load_file(model / relative)


def put(model: Path, relative: str, tensors: Mapping[str, Any]) -> None:
    """Add, replace or take away tensors of a file."""
    kept = tensors_of(model, relative) | dict(tensors)
    save_file({name: tensor for name, tensor in kept.items() if tensor is not REMOVED}, model / relative)


def poison(model: Path, relative: str, tensor: str, value: float, dtype: torch.dtype = torch.float16) -> None:
    """One bad number, the last of a tensor."""
    poisoned = tensors_of(model, relative)[tensor].float()
    poisoned.view(-1)[-1] = value
    put(model, relative, {tensor: poisoned.to(dtype)})


def pack(model: Path, relative: str, header: Any, data: bytes = b"") -> None:
    """A safetensors file with any header, sound or not."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    (model / relative).write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def many_keys(count: int, last: bytes) -> bytes:
    """A long header."""
    return b"{" + b"".join(b'"%d":0,' % i for i in range(count)) + last + b"}"


def floats(begin: int, end: int, **other: Any) -> dict[str, Any]:
    """A header's entry of a vector."""
    return {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end], **other}


def cut(model: Path, relative: str, keep: int) -> None:
    """Keep so many bytes of a file; a negative number counts from its end."""
    content = (model / relative).read_bytes()
    (model / relative).write_bytes(content[:keep])


def make_folder(model: Path, relative: str) -> None:
    (model / relative).unlink(missing_ok=True)
    (model / relative).mkdir()


def make_pipe(model: Path, relative: str) -> None:
    (model / relative).unlink(missing_ok=True)
    os.mkfifo(model / relative)


def make_loop(model: Path, relative: str) -> None:
    (model / relative).unlink(missing_ok=True)
    (model / relative).symlink_to(Path(relative).name)


def move_out(model: Path, relative: str) -> None:
    """Put a file or folder outside, and a link to it in its place."""
    target = outside(model) / Path(relative).name
    shutil.move(model / relative, target)
    (model / relative).symlink_to(target)


def shard(model: Path, relative: str) -> list[str]:
    """Split weights over two files with an index."""
    tensors = tensors_of(model, relative)
    stem = relative.removesuffix(".safetensors")
    shards = {f"{stem}-0000{i}-of-00002.safetensors": sorted(tensors)[i - 1 :: 2] for i in (1, 2)}
    for file, names in shards.items():
        save_file({name: tensors[name] for name in names}, model / file)
    places = {name: Path(file).name for file, names in shards.items() for name in names}
    change(model, f"{relative}.index.json", {"weight_map": places})
    remove(model, relative)
    return list(shards)


def list_files(model: Path, relative: str, changes: Mapping[str, Any]) -> None:
    """The right manifest but for one file's entry."""
    content = json.loads((ASSETS / TINY / "manifest.json").read_text())
    content["files"][relative] |= changes
    write(model, "manifest.json", json.dumps(content))


def adapt(model: Path, tensors: Mapping[str, Any] | None = None, **config: Any) -> None:
    """An adapter of one layer, right but for some tensors and settings."""
    folder = model.parent / "adapter"
    folder.mkdir()
    good = {f"{LAYER}.lora_A.weight": torch.zeros(4, 128), f"{LAYER}.lora_B.weight": torch.zeros(128, 4)}
    kept = {k: t for k, t in (good | dict(tensors or {})).items() if t is not REMOVED}
    save_file({f"base_model.model.{name}": tensor for name, tensor in kept.items()}, model.parent / ADAPTER)
    change(folder, "adapter_config.json", {"lora_alpha": 4, **config})


def into_hub_cache(model: Path) -> Path:
    """The model as a hub's cache holds it: a snapshot of links to blobs."""
    repository = model.parent / "models--org--name"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    shutil.copytree(model, snapshot)
    for i, path in enumerate(sorted(p for p in snapshot.rglob("*") if p.is_file())):
        path.rename(blobs / f"{i:040x}")
        path.symlink_to(os.path.relpath(blobs / f"{i:040x}", path.parent))
    return snapshot


# --- weights: what the file is ----------------------------------------------------------------------------------------


@refused(TINY, "edit", VAE, "a pickle under a false name")
def pickle_in_a_zip(model: Path) -> None:
    with zipfile.ZipFile(model / VAE, "w") as archive:
        archive.writestr("archive/data.pkl", pickle_of(model))


@refused(TINY, "edit", VAE, "a pickle under a false name")
def raw_pickle(model: Path) -> None:
    write(model, VAE, pickle_of(model))


@refused(TINY, "describe", MLLM, "a pickle under a false name")
def raw_pickle_of_the_language_model(model: Path) -> None:
    write(model, MLLM, pickle_of(model))


@refused(TINY, "edit", "vae", "only there as pickle: diffusion_pytorch_model.bin")
def only_a_bin(model: Path) -> None:
    remove(model, VAE)
    write(model, "vae/diffusion_pytorch_model.bin", pickle_of(model))


@refused(TINY, "describe", "mllm", "only there as pickle: pytorch_model-1-of-2.bin, pytorch_model-2-of-2.bin")
def only_bins_of_the_language_model(model: Path) -> None:
    remove(model, MLLM)
    write(model, "mllm/pytorch_model-1-of-2.bin", pickle_of(model))
    write(model, "mllm/pytorch_model-2-of-2.bin", pickle_of(model))
    write(model, "mllm/pytorch_model.bin.index.json", "{}")


@refused(KONTEXT, "generate", "text_encoder", "only there as pickle: model.pt")
def only_a_pt_of_a_text_encoder(model: Path) -> None:
    remove(model, CLIP)
    write(model, "text_encoder/model.pt", pickle_of(model))


@refused(TINY, "edit", VAE, "longer than its header says")
def bytes_after_the_tensors(model: Path) -> None:
    write(model, VAE, (model / VAE).read_bytes() + b"more")


refuse("empty_weights", TINY, "edit", partial(write, relative=VAE, content=b""), VAE, "empty")
refuse("no_weights", TINY, "edit", partial(remove, relative=VAE), VAE, "missing")
refuse("folder_for_weights", TINY, "edit", partial(make_folder, relative=VAE), VAE, "a folder stands where")
refuse("pipe_for_weights", TINY, "edit", partial(make_pipe, relative=VAE), VAE)
refuse("weights_that_link_to_themselves", TINY, "edit", partial(make_loop, relative=VAE), VAE)
for part, keep in (("length", 5), ("header", 1000), ("data", -1)):
    refuse(f"cut_in_its_{part}", TINY, "edit", partial(cut, relative=VAE, keep=keep), VAE, "truncated")


# --- weights: what the header says ------------------------------------------------------------------------------------

for name, header, size, *says in (
    ("overlapping_offsets", {"a": floats(0, 8), "b": floats(4, 12)}, 12, "'b' overlap"),
    ("gap_between_offsets", {"a": floats(0, 4), "b": floats(8, 12)}, 12, "'b' leave a gap"),
    ("gap_at_the_start", {"a": floats(4, 8)}, 8, "'a' leave a gap"),
    ("negative_offsets", {"a": floats(-4, 0)}, 0, "'a' contradicts itself"),
    ("backward_offsets", {"a": floats(4, 0)}, 4, "'a' contradicts itself"),
    ("offsets_of_text", {"a": floats(0, 4, data_offsets="04")}, 4, "'a' contradicts itself"),
    ("shape_against_offsets", {"a": floats(0, 4, shape=[2])}, 4, "'a' contradicts itself"),
    ("shape_of_truth_values", {"a": floats(0, 4, shape=[True])}, 4, "'a' contradicts itself"),
    ("shape_beyond_64_bits", {"a": floats(0, 0, shape=[2**62, 2**62, 0])}, 0),
    ("unknown_dtype", {"a": floats(0, 4, dtype="PY")}, 4, "'a' contradicts itself"),
    ("dtype_that_is_a_list", {"a": floats(0, 4, dtype=[])}, 4, "'a' contradicts itself"),
    ("entry_that_is_a_number", {"a": 1}, 4, "'a' contradicts itself"),
    ("metadata_that_is_a_number", {"__metadata__": 1, "a": floats(0, 4)}, 4),
    ("metadata_of_numbers", {"__metadata__": {"format": 1}, "a": floats(0, 4)}, 4),
    ("header_with_nan", {"a": floats(0, 4, note=float("nan"))}, 4),
    ("header_in_utf_16", json.dumps({"a": floats(0, 4)}).encode("utf-16"), 4),
    ("header_that_is_no_json", b"{'a': 1}", 0, "its header is not JSON"),
    ("header_that_is_nested_too_deep", b"[" * 100_000, 0, "its header is not JSON"),
    ("header_that_is_a_list", [], 0, "its header is not a JSON object"),
    ("header_that_is_empty", b"", 0, "its header is not JSON"),
    ("duplicate_key", b'{"a": 1, "post.bias": 2, "post.bias": 3}', 0, "'post.bias' twice"),
    ("duplicate_key_after_many", many_keys(50_000, b'"k":0,"k":0'), 0, "'k' twice"),
    ("dunder_key", {"a.__class__.__base__": floats(0, 4)}, 4, "'a.__class__.__base__'"),
    ("dunder_key_alone", {"__dict__": floats(0, 4)}, 4, "'__dict__'"),
    ("empty_key", {"": floats(0, 4)}, 4, "a tensor ''"),
    ("key_with_an_empty_part", {"a..b": floats(0, 4)}, 4, "'a..b'"),
    ("key_that_is_a_path", {"../a": floats(0, 4)}, 4, "'../a'"),
):
    refuse(name, TINY, "edit", partial(pack, relative=VAE, header=header, data=bytes(size)), VAE, *says)


@refused(TINY, "edit", VAE, "header claims 104,857,600 bytes")
def header_of_100_mib(model: Path) -> None:
    write(model, VAE, struct.pack("<Q", 100 * 2**20))
    os.truncate(model / VAE, 101 * 2**20)


# --- weights: what they hold ------------------------------------------------------------------------------------------

for dtype in (torch.float16, torch.bfloat16, torch.float32):
    for value in (float("nan"), float("inf"), float("-inf")):
        alter = partial(poison, relative=VAE, tensor=BIAS, value=value, dtype=dtype)
        refuse(f"{value}_in_{dtype}", TINY, "edit", alter, VAE, BIAS, "NaN or Inf")
alter = partial(poison, relative=VAE, tensor=BIAS, value=float("nan"), dtype=torch.float8_e4m3fn)
refuse("nan_in_torch.float8", TINY, "edit", alter, VAE, BIAS, "NaN or Inf")
for dtype in (torch.int64, torch.bool):
    alter = partial(put, relative=VAE, tensors={BIAS: torch.ones(3, dtype=dtype)})
    refuse(f"{dtype}_for_floats", TINY, "edit", alter, "vae", BIAS)

for model, job, file, tensor, shape in (
    (TINY, "edit", VAE, BIAS, "[3]"),
    (TINY, "generate", DIT, "proj_out.bias", "[64]"),
    (TINY, "generate", CONDITIONER, "meta_queries", "[16, 128]"),
    (TINY, "describe", MLLM, "lm_head.weight", "[1219, 128]"),
    (KONTEXT, "generate", CLIP, "text_projection.weight", "[32, 64]"),
    (KONTEXT, "generate", "text_encoder_3/model.safetensors", "shared.weight", "[469, 128]"),
):
    part = file.split("/")[0]
    alter = partial(poison, relative=file, tensor=tensor, value=float("nan"))
    refuse(f"nan_in_the_{part}", model, job, alter, file, tensor, "NaN or Inf")
    alter = partial(put, relative=file, tensors={tensor: torch.zeros(3, 5)})
    refuse(f"wrong_shape_in_the_{part}", model, job, alter, part, tensor, "[3, 5]", shape)
    alter = partial(put, relative=file, tensors={tensor: REMOVED})
    refuse(f"missing_tensor_in_the_{part}", model, job, alter, part, "missing tensor", tensor)
    alter = partial(put, relative=file, tensors={f"evil{i}": torch.zeros(1) for i in range(7)})
    five = "evil0, evil1, evil2, evil3, evil4 and 2 more"
    refuse(f"unexpected_tensors_in_the_{part}", model, job, alter, part, "7 unexpected", five)

alter = partial(put, relative=MLLM, tensors={"model.language_model.norm.weight": torch.zeros(128)})
refuse("tensor_under_two_names", TINY, "describe", alter, "mllm", "norm.weight")


# --- weights in several files -----------------------------------------------------------------------------------------


def mislead(model: Path, target: str) -> None:
    """An index that names another file for one tensor."""
    shard(model, VAE)
    content = json.loads((model / INDEX).read_text())
    content["weight_map"][BIAS] = target
    write(model, INDEX, json.dumps(content))


for name, target in (
    ("up", "../../outside/x.safetensors"),
    ("to_an_absolute_path", "/etc/x.safetensors"),
    ("into_a_folder", "sub/x.safetensors"),
    ("to_a_windows_path", "..\\x.safetensors"),
    ("to_a_pickle", "diffusion_pytorch_model.bin"),
    ("to_an_address", "https://evil.test/x.safetensors"),
):
    refuse(f"index_leads_{name}", TINY, "edit", partial(mislead, target=target), INDEX, "elsewhere", repr(target))


@refused(TINY, "edit", "vae/gone.safetensors", "missing")
def index_names_a_missing_shard(model: Path) -> None:
    mislead(model, "gone.safetensors")


@refused(TINY, "edit", "vae/diffusion_pytorch_model-00001-of-00002.safetensors", "outside its folder")
def shard_that_links_out(model: Path) -> None:
    move_out(model, shard(model, VAE)[0])


@refused(TINY, "edit", INDEX, "outside its folder")
def index_that_links_out(model: Path) -> None:
    shard(model, VAE)
    move_out(model, INDEX)


@refused(TINY, "edit", "vae/diffusion_pytorch_model-00002-of-00002.safetensors", BIAS, "in two files")
def tensor_in_two_shards(model: Path) -> None:
    for file in shard(model, VAE):
        put(model, file, {BIAS: torch.zeros(3)})


def index_weights(model: Path, places: Any) -> None:
    shard(model, VAE)
    change(model, INDEX, {"weight_map": places})


for name, places in (("is_a_list", [VAE]), ("is_empty", {}), ("holds_lists", {BIAS: ["x"]})):
    refuse(f"weight_map_that_{name}", TINY, "edit", partial(index_weights, places=places), INDEX, "the index names")


# --- links and paths out of the folder --------------------------------------------------------------------------------

for model, job, file in (
    (TINY, "edit", VAE),
    (TINY, "edit", CONFIG),
    (TINY, "edit", "vae"),
    (TINY, "edit", "unipic.json"),
    (TINY, "generate", "scheduler/scheduler_config.json"),
    (TINY, "generate", "conditioner"),
    (TINY, "describe", "mllm"),
    (TINY, "describe", MLLM),
    (TINY, "describe", "mllm/config.json"),
    (TINY, "describe", "mllm/tokenizer.json"),
    (TINY, "describe", "mllm/preprocessor_config.json"),
    (TINY, "describe", "mllm/generation_config.json"),
    (KONTEXT, "edit", "model_index.json"),
    (KONTEXT, "generate", "tokenizer"),
    (KONTEXT, "generate", "tokenizer_2/tokenizer.json"),
    (KONTEXT, "generate", "tokenizer_3/tokenizer_config.json"),
):
    refuse(
        f"link_out-{file.replace('/', '-')}", model, job, partial(move_out, relative=file), file, "outside its folder"
    )


@refused(TINY, "edit", "manifest.json", "outside its folder")
def link_out_manifest(model: Path) -> None:
    list_files(model, VAE, {})
    move_out(model, "manifest.json")


@refused(KONTEXT, "generate", "tokenizer/merges.txt", "outside its folder")
def link_out_beside_a_tokenizer(model: Path) -> None:
    write(model, "tokenizer/merges.txt", "#version: 0.2\n")
    move_out(model, "tokenizer/merges.txt")


@refused(TINY, "describe", "mllm/additional_chat_templates/evil.jinja", "outside its folder")
def link_out_of_an_inner_folder(model: Path) -> None:
    make_folder(model, "mllm/additional_chat_templates")
    write(model, "mllm/additional_chat_templates/evil.jinja", "{{ messages }}")
    move_out(model, "mllm/additional_chat_templates/evil.jinja")


@refused(TINY, "save", "vae/notes/secret.txt", "outside its folder")
def link_out_that_saving_would_follow(model: Path) -> None:
    make_folder(model, "vae/notes")
    write(model, "vae/notes/secret.txt", "secret")
    move_out(model, "vae/notes/secret.txt")


def move_a_blob(model: Path, target: str) -> Path:
    """A hub's cache in which one link leads elsewhere."""
    snapshot = into_hub_cache(model)
    blob = (snapshot / VAE).resolve().rename(Path(target).resolve())
    (snapshot / VAE).unlink()
    (snapshot / VAE).symlink_to(blob)
    return snapshot


for name, target in (("out_of_a", "outside/blob"), ("to_another_repository_of_a", "models--org--other")):
    alter = partial(move_a_blob, target=target)
    refuse(f"link_{name}_hub_cache", KONTEXT, "edit", alter, VAE, "outside its folder")


@refused(KONTEXT, "edit", "model_index.json", "outside its folder")
def hub_cache_whose_blobs_are_a_link_out(model: Path) -> Path:
    snapshot = into_hub_cache(model)
    blobs = snapshot.parents[1] / "blobs"
    blobs.rename(outside(model) / "blobs")
    blobs.symlink_to(outside(model) / "blobs")
    return snapshot


@refused(TINY, "edit", "manifest.json")
def manifest_that_links_to_nothing(model: Path) -> None:
    (model / "manifest.json").symlink_to("nothing")


def move_vocabulary_out(model: Path) -> tuple[str, str]:
    """A tokenizer's vocabulary and merges, as files elsewhere."""
    content = json.loads((model / "tokenizer/tokenizer.json").read_text())["model"]
    remove(model, "tokenizer/tokenizer.json")
    vocab, merges = outside(model) / "vocab.json", outside(model) / "merges.txt"
    vocab.write_text(json.dumps(content["vocab"]))
    merges.write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in content["merges"]))
    return str(vocab), str(merges)


@refused(KONTEXT, "generate", "tokenizer")
def tokenizer_vocabulary_elsewhere(model: Path) -> None:
    vocab, merges = move_vocabulary_out(model)
    change(model, "tokenizer/tokenizer_config.json", {"vocab": vocab, "merges": merges})


@refused(KONTEXT, "generate", "tokenizer")
def tokenizer_arguments_elsewhere(model: Path) -> None:
    change(model, "tokenizer/tokenizer_config.json", {"init_inputs": move_vocabulary_out(model)})


# --- code -------------------------------------------------------------------------------------------------------------

EVIL = {"AutoModel": "modeling_evil.Evil", "AutoTokenizer": ["modeling_evil.Evil", None]}
KERNEL = "kernels-community/flash-attn"
refuse_settings(
    TINY,
    "edit",
    CONFIG,
    {
        "auto_map": ({"auto_map": EVIL}, "auto_map"),
        "custom_pipeline_inside": ({"x": [[{"custom_pipeline": "a/b"}]]}, "custom_pipeline"),
        "trust_remote_code": ({"trust_remote_code": True}, "trust_remote_code"),
        "class_by_path": ({"_class_name": "os.system"}, "'os.system'", "known: AutoencoderKL"),
        "class_unknown": ({"_class_name": "EvilVAE"}, "'EvilVAE'"),
        "class_that_is_a_map": ({"_class_name": {"a": "b"}}, "{'a': 'b'}"),
    },
)
refuse_settings(
    TINY,
    "describe",
    "mllm/config.json",
    {
        "auto_map_of_the_language_model": ({"auto_map": EVIL}, "auto_map"),
        "auto_map_inside": ({"text_config.auto_map": EVIL}, "auto_map"),
        "architecture_unknown": ({"architectures": ["Evil"]}, "'Evil'", "known: Qwen2_5_VLForConditionalGeneration"),
        "attention_from_a_hub": ({"_attn_implementation": KERNEL}, KERNEL),
        "attention_inside": ({"text_config.attn_implementation": KERNEL}, KERNEL),
        "attention_by_part": ({"attn_implementation": {"vision_config": KERNEL}}, KERNEL),
        "attention_internal": ({"_attn_implementation_internal": KERNEL}, KERNEL),
        "quantizer_with_kernels": ({"quantization_config": {"quant_method": "mxfp4"}}, "quantization_config"),
        "quantizer_inside": ({"text_config.quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    },
)
refuse_settings(
    KONTEXT,
    "generate",
    "text_encoder_3/config.json",
    {
        "second_architecture": ({"architectures": ["T5EncoderModel", "Evil"]}, "'Evil'"),
        "attention_of_t5": ({"_attn_implementation": KERNEL}, KERNEL),
        "quantizer_of_t5": ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
    },
)
refuse_settings(
    KONTEXT,
    "edit",
    "model_index.json",
    {
        "custom_pipeline": ({"custom_pipeline": "modeling_evil"}, "custom_pipeline"),
        "pipeline_by_path": ({"_class_name": "modeling_evil.Evil"}, "'modeling_evil.Evil'"),
        "pipeline_with_its_module": ({"_class_name": ["modeling_evil", "Evil"]}, "'Evil'"),
        "component_unknown": ({"evil": ["modeling_evil", "Evil"]}, "evil"),
        "component_of_another_class": ({"vae": ["diffusers", "AutoencoderTiny"]}, "vae", "'AutoencoderTiny'"),
        "component_by_path": ({"vae": ["modeling_evil", "os.system"]}, "vae", "'os.system'"),
        "component_of_a_path": ({"vae": ["../../evil", "AutoencoderKL"]}, "vae", "'../../evil'"),
        "component_of_three": ({"vae": ["a", "AutoencoderKL", "c"]}, "vae"),
    },
)
for model, job, file, changes, *says in (
    (KONTEXT, "generate", "tokenizer/tokenizer_config.json", {"auto_map": EVIL}, "auto_map"),
    (KONTEXT, "generate", "tokenizer_3/tokenizer_config.json", {"tokenizer_class": "Evil"}, "'Evil'", "T5Tokenizer"),
    (TINY, "describe", "mllm/tokenizer_config.json", {"auto_map": EVIL}, "auto_map"),
    (TINY, "describe", "mllm/preprocessor_config.json", {"auto_map": EVIL}, "auto_map"),
    (TINY, "describe", "mllm/generation_config.json", {"custom_generate": "a/b"}, "custom_generate"),
    (TINY, "generate", "conditioner/config.json", {"connector_config._attn_implementation": KERNEL}, KERNEL),
    (TINY, "generate", "scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "'DDIMScheduler'"),
):
    refuse_settings(model, job, file, {f"code-{file.replace('/', '-')}": (changes, *says)})


# --- manifest and versions --------------------------------------------------------------------------------------------

for job, file in (
    ("edit", VAE),
    ("edit", CONFIG),
    ("edit", "unipic.json"),
    ("describe", MLLM),
    ("describe", "mllm/config.json"),
    ("describe", "mllm/tokenizer.json"),
):
    part = file.replace("/", "-")
    alter = partial(list_files, relative=file, changes={"sha256": "0" * 64})
    refuse(f"hash-{part}", TINY, job, alter, file, "not the one that manifest.json names")
    alter = partial(list_files, relative=file, changes={"size": 1})
    refuse(f"size-{part}", TINY, job, alter, file, "not the size that manifest.json says")
alter = partial(list_files, relative=VAE, changes={"sha256": None})
refuse("entry_without_a_hash", TINY, "edit", alter, VAE, "manifest.json")


def list_as(model: Path, entry: Any) -> None:
    content = json.loads((ASSETS / TINY / "manifest.json").read_text())
    content["files"][VAE] = entry
    write(model, "manifest.json", json.dumps(content))


refuse("entry_of_text", TINY, "edit", partial(list_as, entry="evil"), VAE, "manifest.json does not list")
refuse("entry_missing", TINY, "edit", partial(list_as, entry=None), VAE, "manifest.json does not list")
refuse_settings(
    TINY,
    "edit",
    "manifest.json",
    {
        "manifest_of_a_newer_format": ({"format_version": 2, "files": {}}, "format version 2", "upgrade unipic"),
        "manifest_without_a_version": ({"files": {}}, "format version None"),
        "manifest_without_files": ({"format_version": 1}, "lists no files"),
    },
)
refuse("manifest_that_is_a_folder", TINY, "edit", partial(make_folder, relative="manifest.json"), "manifest.json")
refuse("manifest_that_is_a_pipe", TINY, "edit", partial(make_pipe, relative="manifest.json"), "manifest.json")
for version in (2, 0, "1", True, 1.0, [1]):
    says = ("format version", repr(version), "upgrade unipic")
    refuse_settings(TINY, "edit", "unipic.json", {f"format_version_{version!r}": ({"format_version": version}, *says)})


# --- JSON -------------------------------------------------------------------------------------------------------------

for model, job, file in (
    (TINY, "edit", CONFIG),
    (TINY, "edit", "unipic.json"),
    (TINY, "edit", "manifest.json"),
    (TINY, "generate", "scheduler/scheduler_config.json"),
    (TINY, "describe", "mllm/config.json"),
    (TINY, "describe", "mllm/tokenizer.json"),
    (TINY, "describe", "mllm/preprocessor_config.json"),
    (KONTEXT, "edit", "model_index.json"),
    (KONTEXT, "generate", "tokenizer/tokenizer_config.json"),
):
    part = file.replace("/", "-")
    refuse(f"empty-{part}", model, job, partial(write, relative=file, content=""), file)
    refuse(f"broken-{part}", model, job, partial(write, relative=file, content='{"a": 1,'), file, "not JSON")
    refuse(f"list-{part}", model, job, partial(write, relative=file, content="[1, 2]"), file, "no JSON object")
for name, content, *says in (
    ("json_in_latin_1", '{"é": 1}'.encode("latin-1"), "not JSON"),
    ("json_nested_too_deep", "[" * 100_000, "not JSON"),
    ("json_with_a_long_number", '{"a":' + "9" * 9999 + "}", "not JSON"),
):
    refuse(name, TINY, "edit", partial(write, relative=CONFIG, content=content), CONFIG, *says)
refuse("folder_for_json", TINY, "edit", partial(make_folder, relative=CONFIG), CONFIG, "a folder stands where")
alter = partial(make_folder, relative="mllm/tokenizer.json")
refuse("folder_for_a_tokenizer", TINY, "describe", alter, "mllm/tokenizer.json", "a folder stands where")


@refused(TINY, "edit", CONFIG, "larger than 64 MiB")
def json_of_65_mib(model: Path) -> None:
    os.truncate(model / CONFIG, 65 * 2**20)


# --- settings ---------------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
refuse_settings(
    TINY,
    "generate",
    "transformer/config.json",
    {
        "misspelt_setting": ({"num_layer": 3}, "'num_layer'", "did you mean 'num_layers'"),
        "layers_of_text": ({"num_layers": "3"},),
        "layers_by_the_million": ({"num_layers": 10**6}, "num_layers"),
        "heads_of_an_odd_width": ({"attention_head_dim": 7, "num_attention_heads": 2},),
        "channels_of_text": ({"in_channels": "16"},),
        "patch_of_zero": ({"patch_size": 0}, "patch_size"),
        "patch_of_true": ({"patch_size": True}, "patch_size"),
        "positions_by_the_billion": ({"pos_embed_max_size": 10**9}, "pos_embed_max_size"),
        "norm_unknown": ({"qk_norm": "evil"},),
    },
)
refuse_settings(
    TINY,
    "edit",
    CONFIG,
    {
        "unknown_setting": ({"evil": 3}, "'evil'"),
        "unprintable_setting": ({"\ud800\n": 3}, "\\ud800"),
        "blocks_of_text": ({"block_out_channels": "abcd"},),
        "blocks_that_are_a_number": ({"block_out_channels": 4},),
        "block_unknown": ({"down_block_types": ["EvilBlock2D"] * 4}, "EvilBlock2D"),
        "activation_unknown": ({"act_fn": "evil"}, "evil"),
        "groups_of_zero": ({"norm_num_groups": 0},),
        "scaling_of_text": ({"scaling_factor": "1"}, "scaling_factor"),
        "scaling_of_zero": ({"scaling_factor": 0}, "scaling_factor"),
        "scaling_of_nan": ({"scaling_factor": NAN}, "scaling_factor"),
    },
)
refuse_settings(
    TINY,
    "generate",
    "conditioner/config.json",
    {
        "misspelt_setting_of_the_conditioner": ({"num_querys": 1}, "num_querys"),
        "misspelt_setting_of_the_connector": ({"connector_config.hiden_size": 1}, "hiden_size"),
        "queries_of_text": ({"num_queries": "16"},),
        "queries_below_zero": ({"num_queries": -1},),
        "connector_that_is_a_list": ({"connector_config": []},),
        "connector_missing": ({"connector_config": REMOVED}, "connector_config"),
        "connector_of_3_heads": ({"connector_config.num_attention_heads": 3}, "3 heads"),
        "connector_of_no_heads": ({"connector_config.num_attention_heads": 0},),
        "connector_of_another_kind": ({"connector_config.hidden_act": "relu"}, "relu"),
    },
)
refuse_settings(
    TINY,
    "generate",
    "scheduler/scheduler_config.json",
    {
        "dynamic_shifting": ({"use_dynamic_shifting": True}, "use_dynamic_shifting"),
        "karras_sigmas": ({"use_karras_sigmas": True}, "use_karras_sigmas"),
        "schedule_shift_of_zero": ({"shift": 0}, "shift 0"),
        "schedule_shift_of_text": ({"shift": "3"}, "shift '3'"),
        "schedule_shift_of_nan": ({"shift": NAN}, "shift nan"),
        "schedule_shift_of_inf": ({"shift": INF}, "shift inf"),
        "timesteps_too_few": ({"num_train_timesteps": 100}, "100"),
    },
)
refuse_settings(
    TINY,
    "edit",
    "unipic.json",
    {
        "default_misspelt": ({"defaults.generate.step": 3}, "'step'", "did you mean 'steps'"),
        "default_of_text": ({"defaults.generate.steps": "3"}, "'steps'", "'3'"),
        "defaults_that_are_a_list": ({"defaults": [1]}, "defaults"),
        "task_misspelt": ({"defaults.generat": {}}, "'generat'", "did you mean 'generate'"),
        "task_that_is_a_list": ({"defaults.edit": [1]}, "'edit'"),
    },
)
refuse_settings(
    TINY,
    "describe",
    "mllm/config.json",
    {
        "width_of_text": ({"text_config.hidden_size": "64"}, "hidden_size"),
        "text_config_that_is_a_list": ({"text_config": []},),
        "layer_unknown": ({"text_config.layer_types": ["evil", "evil"]}, "evil"),
        "rope_unknown": ({"text_config.rope_parameters.rope_type": "evil"}, "evil"),
        "image_token_of_another_tokenizer": ({"image_token_id": 3}, "image_token_id"),
    },
)
refuse_settings(
    TINY,
    "describe",
    "mllm/generation_config.json",
    {
        "stop_token_of_text": ({"eos_token_id": "evil"}, "eos_token_id"),
        "stop_token_that_is_a_map": ({"eos_token_id": {"a": 1}}, "eos_token_id"),
        "repetition_penalty_of_text": ({"repetition_penalty": "1"}, "repetition_penalty"),
        "repetition_penalty_of_nan": ({"repetition_penalty": NAN}, "repetition_penalty"),
    },
)
refuse_settings(
    TINY,
    "describe",
    "mllm/preprocessor_config.json",
    {
        "picture_size_that_is_a_number": ({"min_pixels": REMOVED, "size": 224},),
        "picture_patch_of_text": ({"patch_size": "14"},),
        "picture_patch_of_zero": ({"patch_size": 0},),
        "picture_patch_of_another_model": ({"patch_size": 16},),
        "picture_merge_of_zero": ({"merge_size": 0},),
        "picture_mean_of_text": ({"image_mean": "evil"},),
        "picture_bounds_of_text": ({"max_pixels": "evil"},),
        "picture_bounds_below_zero": ({"min_pixels": -5, "max_pixels": -1},),
    },
)
for file, changes in (
    ("text_encoder/config.json", {"num_attention_heads": 5}),
    ("text_encoder_2/config.json", {"hidden_size": -1}),
    ("text_encoder_3/config.json", {"d_model": "64"}),
):
    refuse_settings(KONTEXT, "generate", file, {f"settings_of_{Path(file).parent}": (changes,)})
for model, job, file, changes in (  # they describe a model, but not the one that the weights are of
    (TINY, "generate", "transformer/config.json", {"num_layers": -1}),
    (TINY, "edit", CONFIG, {"layers_per_block": -1}),
    (TINY, "describe", "mllm/config.json", {"vision_config.depth": -1}),
    (KONTEXT, "generate", "text_encoder_3/config.json", {"num_layers": -1}),
):
    part = file.split("/")[0]
    alter = partial(change, relative=file, changes=changes)
    refuse(f"negative_layers_of_the_{part}", model, job, alter, part, "unexpected tensors")


@refused(TINY, "describe", "mllm/processor_config.json")
def image_processor_that_is_a_list(model: Path) -> None:
    remove(model, "mllm/preprocessor_config.json")
    change(model, "mllm/processor_config.json", {"image_processor": [1]})


# --- tokenizers -------------------------------------------------------------------------------------------------------

PANIC = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}  # of tokenizers' Rust


@refused(TINY, "describe", "mllm", "the tokenizer lacks <|im_start|>")
def tokenizer_without_special_tokens(model: Path) -> None:
    change(model, "mllm/tokenizer_config.json", {"extra_special_tokens": []})
    change(model, "mllm/tokenizer.json", {"added_tokens": []})


@refused(KONTEXT, "generate", "tokenizer")
def tokenizer_of_a_larger_model(model: Path) -> None:
    vocab = json.loads((model / "tokenizer/tokenizer.json").read_text())["model"]["vocab"]
    change(model, "tokenizer/tokenizer.json", {"model.vocab": {token: i + 1000 for token, i in vocab.items()}})


for model, job, file in (
    (KONTEXT, "generate", "tokenizer/tokenizer.json"),
    (KONTEXT, "generate", "tokenizer_3/tokenizer.json"),
    (KONTEXT, "generate", "tokenizer_2/tokenizer_config.json"),
    (TINY, "describe", "mllm/tokenizer.json"),
):
    refuse(f"no-{file.replace('/', '-')}", model, job, partial(remove, relative=file), file.split("/")[0])
for name, model, job, file, changes in (
    ("added_tokens_of_text", TINY, "describe", "mllm/tokenizer.json", {"added_tokens": ["a"]}),
    ("tokenizer_without_a_model", KONTEXT, "generate", "tokenizer/tokenizer.json", {"model": {}}),
    ("vocabulary_empty", KONTEXT, "generate", "tokenizer/tokenizer.json", {"model.vocab": {}}),
    ("vocabulary_of_text", KONTEXT, "generate", "tokenizer/tokenizer.json", {"model.vocab": {"a": "b"}}),
    ("vocabulary_below_zero", KONTEXT, "generate", "tokenizer/tokenizer.json", {"model.vocab": {"a": -1}}),
    ("merges_unknown", KONTEXT, "generate", "tokenizer/tokenizer.json", {"model.merges": [["q", "evil"]]}),
    ("normalizer_that_panics", KONTEXT, "generate", "tokenizer_3/tokenizer.json", {"normalizer": PANIC}),
    ("length_of_zero", KONTEXT, "generate", "tokenizer/tokenizer_config.json", {"model_max_length": 0}),
    ("length_below_zero", KONTEXT, "generate", "tokenizer/tokenizer_config.json", {"model_max_length": -1}),
    ("length_of_text", KONTEXT, "generate", "tokenizer/tokenizer_config.json", {"model_max_length": "16"}),
    ("length_of_text_of_t5", KONTEXT, "generate", "tokenizer_3/tokenizer_config.json", {"model_max_length": "48"}),
    ("end_of_text_that_is_a_map", KONTEXT, "generate", "tokenizer/tokenizer_config.json", {"eos_token": {"a": 1}}),
):
    refuse(name, model, job, partial(change, relative=file, changes=changes), file.split("/")[0])


# --- parts that are missing, or do not fit ----------------------------------------------------------------------------

for model, part, *says in (
    (TINY, "transformer", "missing"),
    (TINY, "vae", "missing"),
    (TINY, "scheduler", "missing"),
    (TINY, "conditioner", "neither a Kontext nor a MetaQuery model"),
    (TINY, "mllm", "needs its multimodal language model"),
    (KONTEXT, "text_encoder", "neither a Kontext nor a MetaQuery model"),
    (KONTEXT, "text_encoder_3", "missing"),
    (KONTEXT, "tokenizer_2", "missing"),
):
    refuse(f"no-{part}", model, "generate", partial(remove, relative=part), part, *says)


def resize(model: Path, file: str, changes: Mapping[str, int], **shapes: tuple[int, ...]) -> None:
    """A part that is right by itself, for other neighbours."""
    change(model, f"{Path(file).parent}/config.json", changes)
    put(model, file, {name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()})


@refused(TINY, "generate", "conditioner/config.json", "llm_hidden_size", "width 96, this one has 128")
def conditioner_of_another_language_model(model: Path) -> None:
    shapes = {"projector_1__weight": (128, 96), "meta_queries": (16, 96)}
    resize(model, CONDITIONER, {"llm_hidden_size": 96}, **shapes)


@refused(TINY, "generate", "conditioner", "96", "128")
def conditioner_of_another_transformer(model: Path) -> None:
    shapes = {"projector_3__weight": (96, 128), "projector_3__bias": (96,)}
    resize(model, CONDITIONER, {"joint_attention_dim": 96}, **shapes)


@refused(TINY, "generate", "conditioner", "96", "64")
def conditioner_of_another_pooled_width(model: Path) -> None:
    shapes = {"projector_2__weight": (96, 128), "projector_2__bias": (96,)}
    resize(model, CONDITIONER, {"pooled_projection_dim": 96}, **shapes)


@refused(KONTEXT, "generate", "text_encoder", "80", "64")
def text_encoder_of_another_pooled_width(model: Path) -> None:
    resize(model, CLIP, {"projection_dim": 48}, text_projection__weight=(48, 64))


@refused(TINY, "edit", "vae", "latent_channels", "8", "16")
def vae_of_other_latents(model: Path) -> None:
    shapes = {"encoder__conv_out__weight": (16, 64, 3, 3), "encoder__conv_out__bias": (16,)}
    resize(model, VAE, {"latent_channels": 8}, **shapes, decoder__conv_in__weight=(64, 8, 3, 3))


# --- adapters ---------------------------------------------------------------------------------------------------------

A, B, ALPHA = (f"{LAYER}.{end}" for end in ("lora_A.weight", "lora_B.weight", "alpha"))
for name, tensors, *says in (
    ("adapter_with_nan", {A: torch.full((4, 128), NAN)}, A, "NaN or Inf"),
    ("adapter_of_another_width", {A: torch.zeros(4, 129)}, LAYER, "[4, 129]", "[128, 128]"),
    ("adapter_of_two_ranks", {B: torch.zeros(128, 5)}, LAYER, "[128, 5]", "[4, 128]"),
    ("adapter_of_rank_0", {A: torch.zeros(0, 128), B: torch.zeros(128, 0)}, LAYER),
    ("adapter_of_scalars", {A: torch.zeros(()), B: torch.zeros(())}, LAYER),
    ("adapter_of_integers", {A: torch.zeros(4, 128, dtype=torch.int64)}, LAYER),
    ("adapter_of_an_unknown_layer", {"evil.lora_A.weight": torch.zeros(4, 128)}, "evil"),
    ("adapter_of_a_norm", {"norm_out.norm.lora_A.weight": torch.zeros(4, 128)}, "norm_out.norm"),
    ("adapter_with_whole_weights", {"proj_out.weight": torch.zeros(64, 128)}, "proj_out.weight"),
    ("adapter_without_half", {B: REMOVED}, LAYER, "B half"),
    ("adapter_with_a_layer_twice", {f"transformer.{A}": torch.zeros(4, 128)}, LAYER),
    ("adapter_with_two_alphas", {ALPHA: torch.ones(2)}, LAYER),
    ("adapter_with_a_dunder", {f"{LAYER}.__class__": torch.ones(2)}, "__class__"),
):
    refuse(name, TINY, "generate", partial(adapt, tensors=tensors), ADAPTER, *says)
for name, config, *says in (
    ("adapter_with_dora", {"use_dora": True}, "use_dora"),
    ("adapter_with_modules_to_save", {"modules_to_save": ["proj_out"]}, "modules_to_save"),
    ("adapter_with_auto_map", {"auto_map": EVIL}, "auto_map"),
    ("adapter_alpha_of_text", {"lora_alpha": "evil"}, "lora_alpha"),
    ("adapter_alpha_that_is_a_list", {"lora_alpha": [4]}, "lora_alpha"),
    ("adapter_alpha_of_nan", {"lora_alpha": NAN}, "lora_alpha"),
):
    refuse(name, TINY, "generate", partial(adapt, **config), "adapter/adapter_config.json", *says)


@refused(TINY, "generate", ADAPTER, "a pickle under a false name")
def adapter_of_pickle(model: Path) -> None:
    adapt(model)
    write(model.parent, ADAPTER, pickle_of(model))


@refused(TINY, "generate", "adapter", "there is no adapter")
def adapter_only_as_bin(model: Path) -> None:
    adapt(model)
    (model.parent / ADAPTER).rename(model.parent / "adapter/adapter_model.bin")


@refused(TINY, "generate", ADAPTER, "outside its folder")
def adapter_that_links_out(model: Path) -> None:
    adapt(model)
    move_out(model, f"../{ADAPTER}")


# --- odd, but right ---------------------------------------------------------------------------------------------------


@accepted(TINY, "generate", "edit", "describe", "save")
@accepted(KONTEXT, "generate", "edit", "save")
def as_it_is(model: Path) -> None:
    """Without a manifest."""


@accepted(TINY, "generate", "describe")
def with_its_manifest(model: Path) -> None:
    shutil.copyfile(ASSETS / TINY / "manifest.json", model / "manifest.json")


@accepted(TINY, "edit")
@accepted(KONTEXT, "edit")
def without_our_own_files(model: Path) -> None:
    remove(model, "unipic.json")
    (model / "model_index.json").unlink(missing_ok=True)


@accepted(TINY, "generate", "edit", "describe")
@accepted(KONTEXT, "generate")
def in_a_hub_cache(model: Path) -> Path:
    return into_hub_cache(model)


@accepted(TINY, "describe")
def reached_by_a_link(model: Path) -> Path:
    model.with_name("link").symlink_to("model")
    return model.with_name("link")


@accepted(TINY, "edit")
def in_shards(model: Path) -> None:
    for file in (DIT, VAE, CONDITIONER, MLLM):
        shard(model, file)


@accepted(KONTEXT, "generate")
def with_text_encoders_in_shards(model: Path) -> None:
    for part in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        shard(model, f"{part}/model.safetensors")


@accepted(TINY, "describe")
def with_the_published_names(model: Path) -> None:
    assert {name.split(".")[0] for name in load_file(model / MLLM)} == {"visual", "model", "lm_head"}


@accepted(TINY, "describe")
def with_the_current_names(model: Path) -> None:
    """Of Qwen's tensors, as transformers 5 saves them."""
    tensors = load_file(model / MLLM)
    renamed = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in tensors.items()}
    save_file({name.replace("visual.", "model.visual.", 1): t for name, t in renamed.items()}, model / MLLM)


@accepted(TINY, "generate", "describe")
def with_flash_attention_wanted(model: Path) -> None:
    wish = "flash_attention_2"
    change(model, "mllm/config.json", {"_attn_implementation": wish, "text_config._attn_implementation": wish})
    change(model, "conditioner/config.json", {"connector_config._attn_implementation": wish})


@accepted(KONTEXT, "generate")
def with_stored_positions(model: Path) -> None:
    put(model, CLIP, {"text_model.embeddings.position_ids": torch.arange(16)[None]})


@accepted(KONTEXT, "generate")
def with_null_components(model: Path) -> None:
    change(model, "model_index.json", {"feature_extractor": [None, None], "image_encoder": None})


@accepted(TINY, "edit")
def with_what_libraries_add(model: Path) -> None:
    change(model, CONFIG, {"_diffusers_version": "0.35.1", "_name_or_path": "/data/their/model"})
    change(model, "mllm/config.json", {"torch_dtype": "bfloat16", "use_cache": False, "auto_map": {}})


@accepted(TINY, "edit")
def with_pickles_beside_the_weights(model: Path) -> None:
    write(model, "vae/diffusion_pytorch_model.bin", pickle_of(model))


@accepted(TINY, "edit")
def with_an_adapter(model: Path) -> None:
    adapt(model)


# --- of no concern ----------------------------------------------------------------------------------------------------

for model, job, file, key, value in (
    (TINY, "edit", CONFIG, "shift_factor", None),
    (KONTEXT, "edit", "model_index.json", "_class_name", "FluxPipeline"),
    (TINY, "describe", "mllm/config.json", "get_text_config", "evil"),
    (TINY, "describe", "mllm/config.json", "return_dict", False),
    (TINY, "describe", "mllm/config.json", "is_encoder_decoder", True),
    (TINY, "describe", "mllm/config.json", "stop_strings", "evil"),
    (TINY, "describe", "mllm/config.json", "transformers_weights", "../../outside/x.safetensors"),
    (KONTEXT, "generate", "text_encoder/config.json", "__class__", "evil"),
    (KONTEXT, "generate", "text_encoder/config.json", "to_dict", "evil"),
    (KONTEXT, "generate", "text_encoder/config.json", "return_dict", False),
    (KONTEXT, "generate", "text_encoder_3/config.json", "return_dict", False),
    (KONTEXT, "generate", "tokenizer_3/tokenizer_config.json", "extra_ids", 10**6),
):
    alter = partial(change, relative=file, changes={key: value})
    HARMLESS.append(Case(f"{key}-{file.replace('/', '-')}", model, job, alter))


def tokenizer_file_elsewhere(model: Path) -> None:
    """By transformers' list of tokenizer.<version>.json, whose names it joins to the folder."""
    shutil.copy(model / "tokenizer/tokenizer.json", outside(model) / "tokenizer.1.0.json")
    files = ["../../outside/tokenizer.1.0.json"]
    change(model, "tokenizer/tokenizer_config.json", {"fast_tokenizer_files": files})


HARMLESS.append(Case("tokenizer_file_elsewhere", KONTEXT, "generate", tokenizer_file_elsewhere))
