"""The demo models: committed files, and the scripts that made them (`python -m models.build`)."""
