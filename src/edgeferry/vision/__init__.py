"""Pixels in, answers out: pure functions from picture bytes to typed answers. Importing it loads no heavy library."""
