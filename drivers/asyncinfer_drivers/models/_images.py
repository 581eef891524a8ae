"""Pictures that may be anything: files, arrays, PIL images; and those that come in wheels."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncinfer.errors import InputError
from asyncinfer_drivers.models._base import need

if TYPE_CHECKING:
    from PIL import Image

__all__ = ("MAX_PIXELS", "as_rgb", "bundled", "read_image", "to_rgb")

#: more would take over 150 MB decoded: refused before decoding
MAX_PIXELS = 50_000_000


def read_image(path: Path) -> Image.Image:
    """The picture in the file, decoded and turned upright.

    Raises ``InputError``, in one line, if there is no such file, or it is no picture or damaged,
    or has more than ``MAX_PIXELS`` pixels.
    """
    image_module = need("PIL.Image")
    path = Path(path)
    try:
        with image_module.open(path) as image:
            if image.format == "EPS":  # decoding one would run Ghostscript
                raise InputError(f"{path}: EPS is a program, not a picture")
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{path}: more than {MAX_PIXELS:,} pixels")
            upright: Image.Image = need("PIL.ImageOps").exif_transpose(image)
            upright.load()
            return upright
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except image_module.UnidentifiedImageError as error:
        raise InputError(f"{path}: not an image that can be read") from error
    except (image_module.DecompressionBombError, image_module.DecompressionBombWarning) as error:
        raise InputError(f"{path}: more than {MAX_PIXELS:,} pixels") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as an image: {_one_line(error)}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Greyscale (16 bit too), palette and CMYK as RGB; what is transparent becomes white."""
    module = need("PIL.Image")
    if image.mode.startswith("I"):  # 16 bit in 32: converting would clip
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        paper = module.new("RGBA", layer.size, "white")
        image = module.alpha_composite(paper, layer)
    return image.convert("RGB")


def as_rgb(item: Any) -> Image.Image:
    """A PIL image, a file's ``Path``, or a uint8 array of pixels as an RGB image.

    Raises ``InputError`` if it is none of them.
    """
    import numpy as np

    image_module = need("PIL.Image")
    if isinstance(item, Path):
        item = read_image(item)
    if isinstance(item, np.ndarray):
        if item.dtype != np.uint8 or not _is_picture(item.shape):
            raise InputError(
                f"a picture is a uint8 array [h, w], [h, w, 3] or [h, w, 4], "
                f"not {item.dtype} {list(item.shape)}"
            )
        item = image_module.fromarray(item)
    if not isinstance(item, image_module.Image):
        raise InputError(f"a picture is a PIL image, a Path or an array, not {type(item).__name__}")
    return to_rgb(item)


def bundled(package: str, file: str) -> Path | None:
    """A file in an installed package, which is not imported; ``None`` if it is not there."""
    spec = importlib.util.find_spec(package)
    roots = (spec.submodule_search_locations if spec else None) or []
    return next((path for root in roots if (path := Path(root, file)).is_file()), None)


def _is_picture(shape: tuple[int, ...]) -> bool:
    return 0 not in shape and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4)))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
