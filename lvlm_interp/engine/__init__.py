"""Scores of answers under many coalitions: the one place that is fast."""
