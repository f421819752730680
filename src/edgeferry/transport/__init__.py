"""Network, client side: HTTP, MQTT to the hub, and the IoT Edge workload API."""
