"""Models of other hosts: servers that speak the Open Inference Protocol v2."""

from asyncinfer_drivers.open_inference.driver import OpenInferenceDriver as OpenInferenceDriver
from asyncinfer_drivers.open_inference.driver import OpenInferenceOptions as OpenInferenceOptions

__all__ = ("OpenInferenceDriver", "OpenInferenceOptions")
