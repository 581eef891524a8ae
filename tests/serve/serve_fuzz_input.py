"""What the fuzzer sends: requests that are nearly right, and bytes that are not."""

from __future__ import annotations

import json
import struct

from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

DATATYPES = ("FP32", "FP64", "FP16", "BF16", "INT8", "INT64", "UINT8", "BOOL", "BYTES", "", "fp32")
SIZES = (1, 1, 1, 8, 8, 2, 0, -1, -(2**63), 2**31, 2**63, 2**64, 10**30)

odd = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from(SIZES),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["\ud800", "\x00", "input", "output", "9" * 5000]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def mostly(right, other, often=9):
    """``right`` so often, ``other`` once: ``one_of`` would take equal strategies as one."""
    return st.sampled_from([right] * often + [other]).flatmap(lambda chosen: chosen)


def nearly(right):
    """Mostly ``right``, else anything."""
    return mostly(right, odd, 15)


def fields(**values):
    """An object of these fields, some of them left out, some of any kind."""
    needed = {name: nearly(value) for name, value in values.items()}
    whole = st.fixed_dictionaries(needed)
    return mostly(whole, st.fixed_dictionaries({}, optional=needed), 5)


shapes = mostly(
    st.just([1, 1, 8, 8]),
    st.one_of(
        st.just([3, 1, 8, 8]),
        st.lists(st.sampled_from(SIZES), max_size=6),
        st.lists(odd, max_size=5),
    ),
    5,
)
numbers = mostly(
    st.just([0.5] * 64),
    st.one_of(
        st.just([[[[1] * 8] * 8]]),
        st.just([1e38] * 192),
        st.just([True] * 64),
        st.just([float("nan")] * 64),
        st.just([[0.1] * 65, []]),
        st.lists(odd, max_size=3),
    ),
    3,
)
parameters = st.dictionaries(
    st.sampled_from(
        ["binary_data_size", "binary_data", "binary_data_output", "timeout", "classification", "x"]
    ),
    nearly(st.sampled_from([True, False, True, False, 0, 1, 256, 257, -1, 2**64])),
    max_size=1,
)
inputs = fields(
    name=st.sampled_from([*["input"] * 9, "output", ""]),
    datatype=st.sampled_from(("FP32",) * 20 + DATATYPES),
    shape=shapes,
    data=numbers,
    parameters=parameters,
)
outputs = fields(name=st.sampled_from([*["output"] * 6, "input", ""]), parameters=parameters)
bodies = fields(
    id=st.text(max_size=8),
    parameters=parameters,
    inputs=st.lists(inputs, min_size=1, max_size=2),
    outputs=st.lists(outputs, max_size=2),
)
names = st.sampled_from([*["digits"] * 9, "digits/versions/1", "nope", "digits%2f", "%00"])


def http_requests(body, name, length, tail):
    """The bytes of a request's head and body; ``length`` is the JSON's, where it is given."""
    text = json.dumps(body).encode()
    head = f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: x\r\n"
    if length is not None:
        shown = len(text) if length == "right" else length
        head += f"Inference-Header-Content-Length: {shown}\r\n"
    return head, text + tail


http = st.builds(
    http_requests,
    bodies,
    names,
    st.sampled_from([*[None] * 6, *["right"] * 4, -1, 0, 7, 2**63, "x"]),
    st.sampled_from([*[b""] * 8, b"\0" * 256, b"\xff" * 256, b"\0" * 768, b"\0" * 255]),
)


def mutated(data, random):
    """``data`` with some of its bytes changed, cut out or doubled."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        if not changed:
            break
        at = random.randrange(len(changed))
        kind = random.randrange(4)
        if kind == 0:
            changed[at] = random.randrange(256)
        elif kind == 1:
            del changed[at : at + random.randrange(1, 9)]
        elif kind == 2:
            changed[at:at] = changed[at : at + random.randrange(1, 33)]
        else:
            changed[at:at] = random.choice((b"[", b'"', b"{", b"1e999", b"NaN", b"-", b"\xff"))
    return bytes(changed)


@st.composite
def messages(draw):
    """A ``ModelInferRequest``, serialised."""
    message = service_pb2.ModelInferRequest(
        model_name=draw(st.sampled_from(["digits"] * 8 + ["nope", ""])),
        model_version=draw(st.sampled_from(["", "1", "2"])),
        id=draw(st.text(st.characters(codec="utf-8"), max_size=4)),
    )
    for _ in range(draw(st.sampled_from((1, 1, 1, 1, 1, 0, 2)))):
        tensor = message.inputs.add(
            name=draw(st.sampled_from(["input"] * 5 + ["output"])),
            datatype=draw(st.sampled_from(("FP32",) * 20 + DATATYPES)),
        )
        sizes = st.lists(st.sampled_from([s for s in SIZES if abs(s) < 2**63]), max_size=5)
        right = st.sampled_from([[1, 1, 8, 8], [3, 1, 8, 8]])
        tensor.shape.extend(draw(mostly(right, sizes)))
        if draw(st.booleans()):
            tensor.contents.fp32_contents.extend([0.5] * draw(st.sampled_from((64, 64, 192, 63))))
        if draw(st.integers(0, 9)) == 9:
            tensor.contents.int_contents.extend([1, 2, 3])
    for size in draw(st.sampled_from(((), (), (64,), (64,), (192,), (3,), (64, 64)))):
        message.raw_input_contents.append(struct.pack("<f", 0.5) * size)
    if draw(st.booleans()):
        message.outputs.add(name=draw(st.sampled_from(["output", "input"])))
    if draw(st.booleans()):
        message.parameters["timeout"].int64_param = draw(st.sampled_from((0, 1, 10**6, -1)))
    return message.SerializeToString()
