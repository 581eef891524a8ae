"""A model server: the devices of a dispatcher behind the Open Inference Protocol v2.

``errors``, ``tensors``, ``limits``, ``gate``, ``served`` and ``core`` know of no transport;
``http`` and ``rpc`` translate. ``run`` puts them together for ``asyncinfer serve``.
"""
