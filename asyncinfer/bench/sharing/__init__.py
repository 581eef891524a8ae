"""The suite ``sharing``: devices that share a host, and devices that fail beside a good one."""
