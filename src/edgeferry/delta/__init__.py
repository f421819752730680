"""How two files differ, and how one file travels in fewer bytes. Pure: buffers in, buffers out."""
