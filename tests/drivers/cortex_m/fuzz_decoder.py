"""Feed the decoder and the frames with damaged and random input; any crash ends it.

python tests/drivers/cortex_m/fuzz_decoder.py --inputs 10000000
"""

import argparse
import json
import random
import sys

from asyncinfer_drivers.cortex_m import frames
from asyncinfer_drivers.cortex_m.codec import CodecError, Decoder, sealed, wrapped
from asyncinfer_drivers.cortex_m.constants import Datatype, FrameType
from asyncinfer_drivers.cortex_m.specs import BoardSpec, TensorSpec

LIMIT = 120
TENSOR = TensorSpec("x", Datatype.INT8, (2, 2), 0.5, 3)
GOOD = [
    frames.encode(frame)
    for frame in (
        frames.HelloReply(0, BoardSpec("b", "f", "m", (TENSOR,), (TENSOR,))),
        frames.Result(2, 2, 9, b"\0\1"),
        frames.StatsReply(3),
        frames.Error(4, 4, 5, "busy"),
        frames.Log(0, 20, "text"),
    )
]


def pieces(chance):
    """One input: a good frame with a change, a right checksum on anything, or noise."""
    kind = chance.random()
    if kind < 0.5:
        data = bytearray(chance.choice(GOOD))
        at = chance.randrange(len(data))
        data[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        return bytes(data)
    noise = chance.randbytes(chance.randrange(40))
    if kind < 0.8:
        head = bytes([1, chance.choice(list(FrameType)), 1, 0])
        return wrapped(sealed(head + noise))
    return noise


def run(inputs, seed):
    """Returns how many frames were found; every input is followed by what may be cut off."""
    chance, decoder, found = random.Random(seed), Decoder(LIMIT), 0
    for _ in range(inputs):
        for body in decoder.feed(pieces(chance)):
            try:
                found += len(frames.parse(body).to_bytes()) > 0
            except CodecError:
                continue
        if decoder.held > LIMIT + LIMIT // 254 + 1:
            raise AssertionError(f"{decoder.held} bytes held")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    print(json.dumps(vars(options) | {"frames": run(options.inputs, options.seed)}))


if __name__ == "__main__":
    sys.exit(main())
