"""What hub and device agree on: the twin document, its limits, its routes. Pure."""
