"""Pure: given what is, what must be done now. No I/O, no kopf, no clock; tested by tables without a cluster."""
