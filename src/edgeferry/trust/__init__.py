"""Signed metadata: The Update Framework through python-tuf. The operator's side signs, the device's side verifies."""
