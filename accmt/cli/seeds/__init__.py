"""`accmt seeds`: a script once for each seed, and whether two such sets of runs differ by more than noise."""
