"""The suite ``link``: the line to a Cortex-M4."""
