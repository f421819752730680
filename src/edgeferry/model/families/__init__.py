"""What a model file tells of its answer family: one file per family; `table.py` names them in order."""
