"""Bytes and topics, sans-IO: MQTT, IoT Hub topics and tokens, service REST shapes, tensor and worker frames."""
