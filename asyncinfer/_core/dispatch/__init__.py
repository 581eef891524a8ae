"""Tasks and devices brought together: what runs where, and what its outcome means."""
