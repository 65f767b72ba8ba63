"""`make demo`: generate a picture, edit it, describe it, with the embedded model; and one sheet that shows all three.

The embedded weights are random until trained ones ship: what you see is the whole machinery at work, not yet a picture.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from PIL import Image, ImageDraw

from unipic import UniPic, save_png

PROMPT, INSTRUCTION, QUESTION = "a red circle above a blue square", "make the circle green", "what is in the picture?"
TILE = 256  # pixels; the embedded model makes 64


def main(folder: Path) -> None:
    start = time.time()
    system = UniPic.from_pretrained("tiny")
    generated = system.generate(PROMPT)[0]
    edited = system.edit(generated, INSTRUCTION)[0]
    answer = system.describe(edited, QUESTION)
    for name, picture in (("generated", generated), ("edited", edited)):
        save_png(picture, folder / f"{name}.png")
        print(f"{folder / name}.png")
    save_png(sheet([(generated, PROMPT), (edited, INSTRUCTION)], f"{QUESTION} {answer!r}"), folder / "sheet.png")
    print(f"{folder / 'sheet.png'}\nanswer: {answer!r}\n\n{time.time() - start:.1f} s, imports aside.")
    print("The embedded weights are random: pictures and answer are noise, made by the code that runs the real models.")
    print(f"""
Try next:
  .venv/bin/unipic generate "two yellow stars" --seed 7 --output stars.png
  .venv/bin/unipic info {folder / "edited.png"}
  .venv/bin/unipic generate "a lighthouse at dusk" --model Skywork/UniPic2-SD3.5M-Kontext-2B    (16 GB to download)""")


def sheet(tiles: list[tuple[Image.Image, str]], caption: str) -> Image.Image:
    """Pictures side by side, a line of text under each, and one under all."""
    page = Image.new("RGB", ((TILE + 16) * len(tiles) + 16, TILE + 80), "white")
    draw = ImageDraw.Draw(page)
    for i, (picture, text) in enumerate(tiles):
        left = 16 + i * (TILE + 16)
        page.paste(picture.resize((TILE, TILE), Image.Resampling.NEAREST), (left, 16))
        draw.text((left, TILE + 22), text, fill="black")
    draw.text((16, TILE + 48), caption if len(caption) <= 88 else f"{caption[:85]}…", fill="black")
    return page


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
