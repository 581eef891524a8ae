"""The devices that asyncinfer is measured with: the same file, one thread a core, its batching."""

import torch
from common import BATCH, FOLDER, SHAPE

from asyncinfer_drivers.torch_host import TorchDriver


def collate(batch: list[bytes]) -> torch.Tensor:
    """Images as they travel, to what the model takes."""
    return torch.frombuffer(bytearray(b"".join(batch)), dtype=torch.uint8).view(-1, *SHAPE)


def preprocess(image: bytes) -> torch.Tensor:
    """``collate`` for one image."""
    return collate([image])[0]


def devices(count: int) -> list[TorchDriver]:
    """One driver a core."""
    return [
        TorchDriver(
            str(FOLDER / "model.pt"),
            name=f"cpu-{number}",
            threads=1,
            max_batch=BATCH,
            preprocess=preprocess,
            collate=collate,
            postprocess=int,
            uncollate=torch.Tensor.tolist,
            warmup_input=bytes(torch.Size(SHAPE).numel()),
        )
        for number in range(1, count + 1)
    ]
