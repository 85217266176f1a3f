"""Several runs with one question: the comparison, its statistics and its report."""
