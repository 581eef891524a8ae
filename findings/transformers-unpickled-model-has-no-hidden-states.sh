#!/usr/bin/env bash
# A model of transformers that was pickled whole gives no hidden states in another process.
#
# output_hidden_states=True is honoured by the process that made the model. Loaded by another one, with torch.load or
# pickle, the same call leaves `hidden_states` out: no error, no warning. transformers notes in a registry of the process,
# when a model is made, which outputs can be recorded; unpickling makes none anew.
# Exits 0 while that is so, 1 once the hidden states are there.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 transformers==5.24.0
cat > "$folder/ask.py" <<'PY'
import sys
import torch
import transformers
from transformers import BertConfig, BertModel

made, file = sys.argv[1] == "made", sys.argv[2]
if made:
    small = BertConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    model = BertModel(small).eval()
    torch.save(model, file)
else:
    model = torch.load(file, weights_only=False)
output = model(torch.ones(1, 4, dtype=torch.int64), output_hidden_states=True)
print(f"transformers {transformers.__version__}, torch {torch.__version__}, {sys.argv[1]}: {', '.join(output)}")
sys.exit(0 if ("hidden_states" in output) == made else 1)
PY
"$folder/venv/bin/python" "$folder/ask.py" made "$folder/model.pt"
"$folder/venv/bin/python" "$folder/ask.py" loaded "$folder/model.pt"
