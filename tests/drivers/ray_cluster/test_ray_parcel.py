"""What travels to an actor and back comes out as it went in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asyncinfer_drivers.ray_cluster.parcel import pack, small, unpack

AGREE = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    ("items", "kind"),
    [
        ([AGREE, AGREE + 1], "arrays"),
        ([AGREE], "arrays"),
        ([AGREE, AGREE[:1]], "list"),
        ([AGREE, AGREE.astype(np.int8)], "list"),
        ([AGREE, torch.ones(2, 3)], "list"),
        ([np.array([{}], dtype=object)], "list"),
        ([torch.ones(2, 3), torch.zeros(2, 3)], "tensors"),
        ([torch.ones(3, requires_grad=True)], "tensors"),
        ([torch.ones(3, dtype=torch.bfloat16)], "list"),
        ([torch.ones(3).to_sparse()], "list"),
        ([1, "two", None], "list"),
        ([], "list"),
    ],
)
def test_items_come_back(items, kind):
    parcel = pack(items)
    assert parcel.kind == kind
    back = unpack(parcel)
    assert [type(item) for item in back] == [type(item) for item in items]
    for one, other in zip(back, items, strict=True):
        if isinstance(other, torch.Tensor):
            assert one.dtype == other.dtype
            assert torch.equal(one.detach().to_dense(), other.detach().to_dense())
        else:
            assert np.array_equal(one, other)


def test_tensors_have_memory_of_their_own():
    block = pack([torch.zeros(4), torch.zeros(4)])
    block.items.flags.writeable = False  # as Ray delivers it
    first, second = unpack(block)
    first += 1
    assert second.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([1, 2.0, "three", b"four", None], True),
        ([np.zeros(100)] * 8, True),
        ([np.zeros(1000)] * 9, False),
        ([torch.zeros(20_000)], False),
        (["x" * 70_000], False),
        ([object()], False),  # nobody knows
        (pack([np.zeros(10_000)]), False),
        (pack([np.zeros(10)]), True),
    ],
)
def test_what_is_large_is_copied_in_a_thread(items, expected):
    assert small(items) is expected
