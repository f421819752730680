"""The embedded hub: registry, twins, methods, routes, and the fronts that speak MQTT and HTTP."""
