"""`unipic generate`, `edit`, `describe` and `info`."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unipic.cli.options import Json, option
from unipic.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image

    from unipic.pipeline import OnStep, Progress

Model = Annotated[str, option("tiny, tiny-kontext, a model's folder, or a hub name")]
Mllm = Annotated[str | None, option("Qwen2.5-VL's folder or hub name, where it is not inside the model")]
NegativePrompt = Annotated[str | None, option("what the picture should not be  [default: the model's]")]
Width = Annotated[int | None, option("pixels  [default: the model's]")]
Height = Annotated[int | None, option("pixels  [default: the model's]")]
Steps = Annotated[int | None, option("sampling steps  [default: the model's]")]
GuidanceScale = Annotated[float | None, option("weight of the prompt; 1 is no guidance  [default: the model's]")]
GuidanceInterval = Annotated[
    tuple[float, float] | None, option("noise levels, low and high, between which guidance acts", metavar="LOW HIGH")
]
SkipLayers = Annotated[
    str | None, option("layers of skip-layer guidance, such as 7,8,9 for SD3.5-Medium", metavar="N,N")
]
SkipLayerScale = Annotated[float, option("its weight")]
SkipLayerStart = Annotated[float, option("share of the steps after which it acts")]
SkipLayerStop = Annotated[float, option("share of the steps before which it acts")]
Seed = Annotated[int, option("of the first picture; the next have the next numbers")]
NumImages = Annotated[int, option("pictures to make")]
Lora = Annotated[str | None, option("adapter of the transformer: a folder or a .safetensors file")]
Device = Annotated[str, option("where to compute", metavar="auto|cpu|cuda|mps")]
DType = Annotated[str, option("auto: bf16 on a GPU, fp32 on a CPU", metavar="auto|fp32|bf16|fp16")]
Offload = Annotated[str, option("keep only the part at work, or its layers, on the device", metavar="none|model|group")]
Quantize = Annotated[str, option("hold the weights of large parts in 8 bits", metavar="none|fp8|int8")]
FastBatch = Annotated[bool, option("let pictures share forwards: faster, within one grey level in fp32")]
PreviewEvery = Annotated[int, option("write the present estimate every N steps; 0 is never", metavar="N")]


def generate(
    prompt: Annotated[str, typer.Argument(help="what the picture shows")],
    model: Model = "tiny",
    mllm: Mllm = None,
    negative_prompt: NegativePrompt = None,
    width: Width = None,
    height: Height = None,
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    guidance_interval: GuidanceInterval = None,
    skip_layers: SkipLayers = None,
    skip_layer_scale: SkipLayerScale = 2.8,
    skip_layer_start: SkipLayerStart = 0.01,
    skip_layer_stop: SkipLayerStop = 0.2,
    seed: Seed = 42,
    num_images: NumImages = 1,
    lora: Lora = None,
    device: Device = "auto",
    dtype: DType = "auto",
    offload: Offload = "none",
    quantize: Quantize = "none",
    fast_batch: FastBatch = False,
    preview_every: PreviewEvery = 0,
    output: Annotated[Path, option("PNG to write; several are numbered")] = Path("generated.png"),
    as_json: Json = False,
) -> None:
    """Make a picture from a prompt."""
    outputs = _outputs(output, num_images, preview_every)
    system = _open(model, mllm, lora, device=device, dtype=dtype, offload=offload, quantize=quantize)
    with _progress(outputs, preview_every) as on_step:
        pictures = system.generate(
            prompt,
            negative_prompt=negative_prompt,
            width=width,
            height=height,
            steps=steps,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            skip_layers=_skip_layers(skip_layers, skip_layer_scale, skip_layer_start, skip_layer_stop),
            seed=seed,
            num_images=num_images,
            fast_batch=fast_batch,
            on_step=on_step,
        )
    _write(pictures, outputs, preview_every > 0, as_json)


def edit(
    image: Annotated[str, typer.Argument(help="PNG, JPEG or WebP to edit")],
    instruction: Annotated[str, typer.Argument(help="what to change")],
    model: Model = "tiny",
    mllm: Mllm = None,
    reference: Annotated[list[str] | None, option("another picture to take from (repeatable)", metavar="IMAGE")] = None,
    negative_prompt: NegativePrompt = None,
    image_size: Annotated[int | None, option("longer side to work at, in pixels  [default: the model's]")] = None,
    width: Annotated[int | None, option("of the result  [default: the picture's working size]")] = None,
    height: Annotated[int | None, option("of the result  [default: the picture's working size]")] = None,
    keep_size: Annotated[bool, option("return the result in the picture's own size", "--keep-size")] = False,
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    guidance_interval: GuidanceInterval = None,
    skip_layers: SkipLayers = None,
    skip_layer_scale: SkipLayerScale = 2.8,
    skip_layer_start: SkipLayerStart = 0.01,
    skip_layer_stop: SkipLayerStop = 0.2,
    seed: Seed = 42,
    num_images: NumImages = 1,
    lora: Lora = None,
    device: Device = "auto",
    dtype: DType = "auto",
    offload: Offload = "none",
    quantize: Quantize = "none",
    fast_batch: FastBatch = False,
    preview_every: PreviewEvery = 0,
    output: Annotated[Path, option("PNG to write; several are numbered")] = Path("edited.png"),
    as_json: Json = False,
) -> None:
    """Change a picture as told."""
    inputs = [image, *(reference or [])]
    _check_pictures(inputs)
    outputs = _outputs(output, num_images, preview_every, inputs)
    system = _open(model, mllm, lora, device=device, dtype=dtype, offload=offload, quantize=quantize)
    with _progress(outputs, preview_every) as on_step:
        pictures = system.edit(
            image,
            instruction,
            references=reference or (),
            negative_prompt=negative_prompt,
            image_size=image_size,
            width=width,
            height=height,
            keep_size=keep_size,
            steps=steps,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            skip_layers=_skip_layers(skip_layers, skip_layer_scale, skip_layer_start, skip_layer_stop),
            seed=seed,
            num_images=num_images,
            fast_batch=fast_batch,
            on_step=on_step,
        )
    _write(pictures, outputs, preview_every > 0, as_json)


def describe(
    image: Annotated[str, typer.Argument(help="PNG, JPEG or WebP to look at")],
    question: Annotated[str | None, typer.Argument(help="what to say of it", show_default=False)] = None,
    model: Model = "tiny",
    mllm: Mllm = None,
    max_new_tokens: Annotated[int | None, option("longest answer  [default: the model's]")] = None,
    device: Device = "auto",
    dtype: DType = "auto",
    offload: Offload = "none",
    quantize: Quantize = "none",
    as_json: Json = False,
) -> None:
    """Answer a question about a picture."""
    _check_pictures([image])
    system = _open(model, mllm, None, device=device, dtype=dtype, offload=offload, quantize=quantize)
    if as_json:
        answer = system.describe(image, question, max_new_tokens=max_new_tokens)
        typer.echo(json.dumps({"image": image, "question": question, "answer": answer}, ensure_ascii=False))
        return
    for piece in system.describe_stream(image, question, max_new_tokens=max_new_tokens):
        typer.echo(piece, nl=False)
        sys.stdout.flush()
    typer.echo()


def info(
    model: Annotated[str, typer.Argument(help="a model, or a PNG that unipic made")] = "tiny",
    mllm: Mllm = None,
    as_json: Json = False,
) -> None:
    """Say what a model holds and whether it is complete, or how a picture was made."""
    from unipic.models.find import EMBEDDED

    if model not in EMBEDDED and Path(model).suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
        from unipic.pictures import settings_of

        settings = settings_of(model)
        typer.echo(json.dumps(settings, indent=None if as_json else 2, ensure_ascii=False))
        return
    from unipic.models.inventory import report_of

    report = report_of(model, mllm)
    typer.echo(json.dumps(report) if as_json else _table(report))
    if not report["complete"]:
        raise typer.Exit(1)


def _table(report: dict[str, Any]) -> str:
    lines = [f"{report['model']}: {report['kind']}, {report['folder']}"]
    for part in report["components"]:
        dtypes = ", ".join(part["dtypes"])
        size = f"{part['parameters'] / 1e6:,.1f} M parameters  {dtypes}  {part['bytes'] / 2**20:,.1f} MiB"
        hashes = " ".join(h[:12] for h in part["sha256"].values())
        state = f"PROBLEM {part['problem']}" if part["problem"] else f"{size}  {hashes}" if part["bytes"] else "ok"
        lines.append(f"  {part['component']:15} {state}")
    total = sum(part["parameters"] for part in report["components"]) / 1e6
    lines.append(f"  {'in all':15} {total:,.1f} M parameters; {'complete' if report['complete'] else 'INCOMPLETE'}")
    if report["weights"]:
        lines.append(f"  {'weights':15} {report['weights']}")
    return "\n".join(lines)


def _open(model: str, mllm: str | None, lora: str | None, **placement: str) -> Any:
    from unipic.system import UniPic

    return UniPic.from_pretrained(model, mllm=mllm, lora=lora, **placement)


def _outputs(output: Path, count: int, preview_every: int, inputs: list[str] | None = None) -> list[Path]:
    """The files to write, none of which may cost the user a file that cannot be made again."""
    from unipic.pictures import check_replaceable
    from unipic.types import MAX_PICTURES, MAX_STEPS, check_whole

    check_whole("number of pictures", count, 1, MAX_PICTURES)
    check_whole("preview interval", preview_every, 0, MAX_STEPS)
    if output.suffix.lower() != ".png":
        raise BadInput("pictures are written as PNG", f"--output {output}", "give a file name that ends in .png")
    names = [output] if count == 1 else [output.with_stem(f"{output.stem}-{i + 1}") for i in range(count)]
    for name in [*names, *(map(_preview_name, names) if preview_every else [])]:
        check_replaceable(name, inputs or [])
    return names


def _preview_name(output: Path) -> Path:
    return output.with_suffix(".preview.png")


def _check_pictures(paths: list[str]) -> None:
    """Refuse bad pictures before a model is loaded."""
    from unipic.pictures import load

    for path in paths:
        load(path)


def _skip_layers(layers: str | None, scale: float, start: float, stop: float) -> Any:
    from unipic.types import SkipLayerGuidance

    if layers is None:
        return None
    try:
        return SkipLayerGuidance(tuple(int(n) for n in layers.split(",")), scale, start, stop)
    except ValueError:
        raise BadInput("the skipped layers are no list of numbers", f"--skip-layers {layers}", "write 7,8,9") from None


@contextmanager
def _progress(outputs: list[Path], preview_every: int) -> Any:
    """A bar on stderr, if that is a terminal, and previews beside the outputs."""
    from tqdm import tqdm

    from unipic.pictures import SETTINGS_KEY, save_png

    with tqdm(disable=None, unit="step", leave=False) as bar:

        def on_step(progress: Progress) -> None:
            bar.total = progress.steps * len(outputs)
            bar.update()
            if preview_every and progress.step % preview_every == 0:
                preview = progress.preview()
                preview.info[SETTINGS_KEY] = json.dumps({"task": "preview", "step": progress.step})
                save_png(preview, _preview_name(outputs[progress.picture]))

        callback: OnStep = on_step
        yield callback


def _write(pictures: list[Image], outputs: list[Path], previewed: bool, as_json: bool) -> None:
    from unipic.pictures import SETTINGS_KEY, save_png

    rows = []
    for picture, name in zip(pictures, outputs, strict=True):
        save_png(picture, name)
        if previewed:
            _preview_name(name).unlink(missing_ok=True)
        rows.append({"path": str(name), "settings": json.loads(picture.info[SETTINGS_KEY])})
    typer.echo(json.dumps(rows, ensure_ascii=False) if as_json else "\n".join(row["path"] for row in rows))
