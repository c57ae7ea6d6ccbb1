"""The offline recipe, end to end on a toy: preferences decide, nothing is lost by a kill, equal seeds give equal runs."""
