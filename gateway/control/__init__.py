"""What runs beside the request path: the worker pool now; shedding, rollback and scale join it."""
