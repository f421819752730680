"""Drawing, training and exporting of the demo models. Nothing in `src/` imports this."""
