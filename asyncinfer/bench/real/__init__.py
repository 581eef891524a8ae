"""The suite ``real``: real models on real devices."""
