"""The operator's port: health, metrics and /admin."""
