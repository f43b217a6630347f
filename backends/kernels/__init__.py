"""One operation, one reference in plain torch; faster forms are chosen here for the device at hand."""
