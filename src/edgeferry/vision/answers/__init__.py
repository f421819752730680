"""Output tensors to answers: one file per answer family; `table.py` names them all. Importing this package loads no heavy library."""
