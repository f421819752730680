"""Who is wired to whom: device, hub, operator, demo, logging."""
