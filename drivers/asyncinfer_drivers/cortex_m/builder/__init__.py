"""The steps of a firmware build; ``asyncinfer_drivers.cortex_m.build`` is the way in."""
