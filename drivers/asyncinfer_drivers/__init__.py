"""Drivers for asyncinfer, one module or sub-package per kind of device.

Nothing is imported here: each module brings its own heavy dependency.
"""
