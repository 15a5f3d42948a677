"""One small file for each method, all over the one scoring engine."""
