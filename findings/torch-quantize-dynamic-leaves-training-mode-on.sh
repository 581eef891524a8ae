#!/usr/bin/env bash
# quantize_dynamic gives a model in evaluation mode layers that are in training mode.
#
# The model was put into evaluation mode before. The layers that take the place of the linear ones, and their packed weights,
# say training=True, while the model and all its other layers say False; another eval() sets them right. Who asks every part of a
# model whether it is in training mode, to see if eval() was forgotten, is told that it was.
# Exits 0 while that is so, 1 once the new layers are in the mode of the model.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 numpy==2.4.2
cat > "$folder/ask.py" <<'PY'
import sys
import warnings

import torch
from torch import nn

warnings.simplefilter("ignore")
model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
before = {name: part.training for name, part in quantised.named_modules()}
after = {name: part.training for name, part in quantised.eval().named_modules()}
print(f"torch {torch.__version__}")
print("training, as it was given:", before)
print("training, after eval():   ", after)
sys.exit(0 if before["0"] and not before[""] and not any(after.values()) else 1)
PY
"$folder/venv/bin/python" "$folder/ask.py"
