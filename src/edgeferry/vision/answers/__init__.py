"""Output tensors to answers: one file per answer family; `table.py` names them. Importing it loads no heavy library."""
