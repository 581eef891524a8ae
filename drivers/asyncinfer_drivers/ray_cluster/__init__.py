"""Devices on a Ray cluster: actors that run a model, and drivers that speak to them."""

from asyncinfer_drivers.ray_cluster.driver import RayDriver as RayDriver
from asyncinfer_drivers.ray_cluster.driver import RayOptions as RayOptions
from asyncinfer_drivers.ray_cluster.fleet import follow as follow
from asyncinfer_drivers.ray_cluster.fleet import ray_drivers as ray_drivers
from asyncinfer_drivers.ray_cluster.nodes import Node as Node

__all__ = ("Node", "RayDriver", "RayOptions", "follow", "ray_drivers")
