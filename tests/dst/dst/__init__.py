"""Deterministic simulation: the real dispatcher, faulty devices, a clock that jumps, one seed."""
