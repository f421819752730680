"""What a thin link allows, pure: the cheapest route to a file, and how fast bytes may flow."""
