"""The box: everything that touches the world (ports, disk, broker, clock)."""
