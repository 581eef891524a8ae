"""Faces in pictures: two devices share the pictures, the faces come in the pictures' order.

Pictures differ in size and in what there is to find, so that no two take equally long: whichever
device is free takes the next one. Files are read in the devices' threads, and one that cannot be
read is reported in its place.

    python examples/faces.py                               # pictures that come with scikit-image
    python examples/faces.py party.jpg family/*.png --save found/
    python examples/faces.py --json

Needs ``pip install 'asyncinfer[models]'`` and, for the weights (MIT licence), ``pip install
--no-deps facenet-pytorch==2.6.0``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from asyncinfer import Dispatcher, Result
from asyncinfer.errors import AsyncInferError
from asyncinfer_drivers.models.mtcnn import MODEL, Face
from asyncinfer_drivers.torch_host import TorchDriver

Picture = Path | np.ndarray[Any, Any]


async def main() -> None:
    """Detect, and tell in the pictures' order, as results arrive."""
    parser = argparse.ArgumentParser()
    parser.add_argument("pictures", nargs="*", type=Path, help="default: those that are installed")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="write framed pictures there")
    options = parser.parse_args()
    bundled = MODEL.inputs()
    pictures: Sequence[Picture] = options.pictures or bundled.items
    names = [*map(str, options.pictures)] or bundled.names
    found = list[dict[str, Any]]()
    devices = [TorchDriver(MODEL, name=name, threads=1, max_batch=1) for name in ("one", "two")]
    async with Dispatcher[Picture, list[Face]](devices) as dispatcher:
        async for result in dispatcher.results(pictures):
            name, picture = names[result.index], pictures[result.index]
            found.append(described(name, result))
            if not options.json:
                show(found[-1])
            if options.save and result.value is not None:  # writing takes time: not on the loop
                await asyncio.to_thread(save, picture, name, result.value, options.save)
    if options.json:
        print(json.dumps({"pictures": found}))
    if failed := sum(picture["error"] is not None for picture in found):
        sys.exit(f"{failed} of {len(found)} pictures could not be read")


def described(name: str, result: Result[list[Face]]) -> dict[str, Any]:
    """One picture's part of the JSON object."""
    error = result.error and (result.error.causes or (result.error,))[-1]
    return {
        "picture": name,
        "faces": [face._asdict() for face in result.value or ()],
        "device": result.device,
        "error": str(error) if error else None,
    }


def show(picture: dict[str, Any]) -> None:
    """Print a picture and its faces."""
    print(picture["error"] or f"{picture['picture']}: {len(picture['faces'])} found", flush=True)
    for face in picture["faces"]:
        corners = ", ".join(f"{place:.0f}" for place in face["box"])
        print(f"  [{corners}] p={face['probability']:.3f}")


def save(picture: Picture, name: str, faces: Sequence[Face], folder: Path) -> None:
    """Write the picture with its faces framed and their landmarks dotted."""
    image = Image.fromarray(MODEL.decode(picture) if isinstance(picture, Path) else picture)
    draw = ImageDraw.Draw(image)
    for face in faces:
        draw.rectangle(face.box, outline="lime", width=2)
        for x, y in face.landmarks:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill="red")
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / f"{Path(name).stem}-faces.png")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except AsyncInferError as error:  # no weights, for one: it says what to do
        sys.exit(f"faces.py: {error}")
