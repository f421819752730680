"""Servers of pictures under load: the client, the machine, the limit, the peers. For bench-serve and bench-swap."""
