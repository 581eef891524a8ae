"""From ``torch.export``'s graph to the INT8 compiler's float graph, in operators that it has.

``program`` exports a module and says what is left to the host. ``net`` holds the graph that is
being made and where each number of PyTorch's tensors lies on the board. ``layers``, ``arithmetic``
and ``views`` are tables: what to do with each operator. ``custom`` has three operators that the
compiler lacks.
"""
