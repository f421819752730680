"""Pixels in, answers out: pure functions from picture bytes to typed answers. Importing this room loads no heavy library."""
