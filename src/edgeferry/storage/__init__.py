"""Disk and objects: atomic files, partial downloads, the model repository, the journal, blob stores and patching."""
