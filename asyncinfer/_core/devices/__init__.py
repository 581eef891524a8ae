"""Devices: their states, their speed, their connections. Of tasks they know what they run."""
