"""Build the nets, run each on the emulated board, and print what became of them.

python tests/nets/run.py            # all
python tests/nets/run.py unet tcn   # some
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter

from board_judge import judge
from board_nets import NETS

#: decibels; below that the build has to say where they are lost
BAR = 25.0


def main(names: list[str]) -> int:
    """Judge them; 1 if one is wrong."""
    verdicts = []
    for name in names or NETS:
        verdict = asyncio.run(judge(NETS[name]))
        verdicts.append(verdict)
        ratio = "" if verdict.snr_db is None else f"{verdict.snr_db:5.1f} dB"
        texts = [verdict.said, *(f"host: {text}" for text in verdict.on_host)]
        print(
            f"{verdict.outcome:8} {name:28} {verdict.seconds:5.1f} s {ratio:9} {' '.join(texts)}",
            flush=True,
        )
    counts = Counter(verdict.outcome for verdict in verdicts)
    slow = [v.name for v in verdicts if v.outcome == "refused" and v.seconds > 2]
    low = [v.name for v in verdicts if v.snr_db is not None and v.snr_db < BAR]
    print(f"{dict(counts)}; refused after over 2 s: {slow}; below {BAR:g} dB: {low}")
    return 1 if counts["wrong"] or slow else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
