"""Inference on the device: ports, slots, infer, api, formats."""
