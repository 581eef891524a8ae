#!/usr/bin/env bash
# bakenn quantises what goes into a Sigmoid with the range of what comes out of it.
#
# Between 0 and 1 nothing negative is left of the input: a Sigmoid of -4, -3, -2 and -1 is 0.5 each, and above 1 it is
# 0.73. The classes of Sigmoid, SiLU, HardSwish and HardSigmoid derive from that of ReLU, and the quantiser, which asks
# with isinstance, gives what precedes them the range of their output; of a ReLU's input that loses nothing. The compiled
# C agrees with the package's own integer reference bit for bit, so checks against that reference see nothing.
# Exits 0 while that is so, 1 once the sigmoid of -4 is below 0.1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 bakenn==1.0.0
cat > "$folder/ask.py" <<'PY'
import sys
from math import exp

import bakenn
import numpy as np
import torch
from bakenn.frontends.torch_export import capture_torch_export
from torch import nn

inputs = np.arange(-4, 5, dtype=np.float32)[:, None]
layer = nn.Linear(1, 1)
with torch.no_grad():
    layer.weight.fill_(1)
    layer.bias.fill_(0)
net = nn.Sequential(layer, nn.Sigmoid()).eval()
graph = capture_torch_export(net, torch.zeros(1, 1), name="net")
samples = [inputs[at : at + 1] for at in range(len(inputs))]
plan = bakenn.compile(bakenn.quantize_float_graph(graph, samples), sys.argv[1]).plan


def run(x):
    codes = bakenn.run_reference(plan, bakenn.quantize_input(plan, x))
    return float(np.ravel(bakenn.dequantize_output(plan, codes))[0])


found = [run(x) for x in samples]
print(f"bakenn {bakenn.__version__}, torch {torch.__version__}")
print("torch ", " ".join(f"{1 / (1 + exp(-x)):.2f}" for x in inputs[:, 0]))
print("bakenn", " ".join(f"{x:.2f}" for x in found))
sys.exit(0 if found[0] > 0.4 else 1)
PY
"$folder/venv/bin/python" "$folder/ask.py" "$folder/build"
