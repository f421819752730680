"""Makes pairs of model versions for `make bench-delta`: from the demo models, and from nets trained here."""
