"""``asyncinfer bench``: what the dispatcher gains, measured as ratios side by side in one run."""
