"""A folder to try fine-tuning with: scikit-image's bundled photographs, captions, and three plain edits of each.

    python scripts/photos.py FOLDER

Writes JPEGs and metadata.jsonl, in the format that docs/finetune.md describes. Needs scikit-image (`.[dev]`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import skimage
from PIL import Image, ImageEnhance, ImageOps

BUNDLED = Path(skimage.__file__).parent / "data"
LONGER_SIDE = 512  # pixels
PHOTOS = {
    "astronaut.png": "an astronaut in an orange suit, smiling, before a flag and a model of a space shuttle",
    "chelsea.png": "the face of a tabby cat",
    "coffee.png": "a cup of coffee on a saucer, on a wooden table",
    "hubble_deep_field.jpg": "hundreds of distant galaxies on a black sky",
    "motorcycle_left.png": "a motorcycle in a cluttered workshop",
    "rocket.jpg": "a rocket on its launch pad at dusk",
}
EDITS: dict[str, tuple[str, Callable[[Image.Image], Image.Image]]] = {
    "gray": ("make it black and white", ImageOps.grayscale),
    "mirrored": ("mirror it from left to right", ImageOps.mirror),
    "brighter": ("make it brighter", lambda picture: ImageEnhance.Brightness(picture).enhance(1.5)),
}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, str]] = []
    for file, caption in PHOTOS.items():
        name = Path(file).stem
        with Image.open(BUNDLED / file) as opened:
            photo = opened.convert("RGB")
        photo.thumbnail((LONGER_SIDE, LONGER_SIDE))
        photo.save(folder / f"{name}.jpg", quality=92)
        lines.append({"id": name, "image": f"{name}.jpg", "text": caption})
        for edit, (instruction, change) in EDITS.items():
            target = f"{name}-{edit}.jpg"
            change(photo).convert("RGB").save(folder / target, quality=92)
            lines.append(
                {"id": f"{name}-{edit}", "source": f"{name}.jpg", "instruction": instruction, "target": target}
            )
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    print(f"{folder}: {len(PHOTOS)} photographs, {len(PHOTOS) * len(EDITS)} edits")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
