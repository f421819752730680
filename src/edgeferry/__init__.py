"""edgeferry ferries AI models to edge devices over thin links and serves them there without a pause."""

__version__ = "0.1.0"
