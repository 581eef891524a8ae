"""Tasks, from their source to their consumer. They know of no device."""
