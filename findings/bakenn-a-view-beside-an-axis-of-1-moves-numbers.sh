#!/usr/bin/env bash
# bakenn takes a view from [N, C, H, W] to [N, C, L] for one that moves nothing as soon as H or W is 1.
#
# It keeps channels last, where such a view is the same only if the channels stay an axis of their own. Other general
# views it refuses with "not layout-preserving after NHWC canonicalization"; for a change of rank it asks only whether
# there is an axis of 1. So numbers come in another order, without a word: here of 24 numbers most are others.
# The compiled C agrees with the package's own integer reference, so checks against that reference see nothing.
# Exits 0 while that is so, 1 once it is refused or right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 bakenn==1.0.0
cat > "$folder/ask.py" <<'PY'
import sys

import bakenn
import numpy as np
import torch
from bakenn.frontends.torch_export import capture_torch_export
from torch import nn


class Net(nn.Module):
    def forward(self, x):
        return torch.relu(x).view(1, 6, 4)


x = np.arange(24, dtype=np.float32).reshape(1, 4, 1, 6)
right = Net()(torch.from_numpy(x)).numpy().ravel()
graph = capture_torch_export(Net().eval(), torch.zeros(1, 4, 1, 6), name="net")
plan = bakenn.compile(bakenn.quantize_float_graph(graph, [x]), sys.argv[1]).plan
# both with channels last, as the package has its inputs and outputs
codes = bakenn.quantize_input(plan, np.moveaxis(x, 1, -1))
output = np.asarray(bakenn.dequantize_output(plan, bakenn.run_reference(plan, codes)))
found = np.moveaxis(output.reshape(1, 4, 6), -1, 1).ravel()
print(f"bakenn {bakenn.__version__}, torch {torch.__version__}")
print("torch ", " ".join(f"{number:.0f}" for number in right))
print("bakenn", " ".join(f"{number:.0f}" for number in found))
sys.exit(0 if np.abs(found - right).max() > 1 else 1)
PY
"$folder/venv/bin/python" "$folder/ask.py" "$folder/build"
