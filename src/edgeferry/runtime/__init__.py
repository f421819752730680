"""Engines: sessions over ONNX Runtime and LiteRT, the worker process that serves a version, and how it is spoken to."""
