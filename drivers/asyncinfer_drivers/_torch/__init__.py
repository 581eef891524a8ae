"""The synchronous half of the torch driver: everything here runs in its worker thread."""
