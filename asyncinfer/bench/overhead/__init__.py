"""The suite ``overhead``: what dispatching costs."""
