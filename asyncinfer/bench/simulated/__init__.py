"""The suites ``paper``, ``ablation`` and ``scale``: simulated devices in virtual time."""
