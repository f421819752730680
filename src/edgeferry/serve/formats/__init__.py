"""The shapes in which answers leave: one file per shape, pure functions from Answer to plain values."""
