"""``python -m asyncinfer.bench.peers``: makes the environments of the peers."""

from __future__ import annotations

import sys

from asyncinfer.bench.peers.suite import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
