"""Systems, measures, scores, tests, fusion, comparison."""
