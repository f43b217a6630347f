"""The door: HTTP in, the request path, and what governs it."""
