"""From per-patch predictions to numbers that can be believed."""
