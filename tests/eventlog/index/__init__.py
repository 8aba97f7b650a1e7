"""`index.db`: the same answers as without it, whatever became of its bytes."""
