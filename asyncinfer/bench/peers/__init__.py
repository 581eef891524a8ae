"""How asyncinfer is measured beside other ways to serve a model: see docs/peers.md."""
