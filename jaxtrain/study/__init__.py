"""Studies, which are several runs with one question: comparisons, their statistics and reports."""
