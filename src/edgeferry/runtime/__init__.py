"""Engines: sessions over ONNX Runtime and LiteRT, the worker process that serves one version, and the side that speaks to it."""
