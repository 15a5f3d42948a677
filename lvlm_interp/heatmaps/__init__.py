"""Heatmaps of an answer on its picture: one call, many methods."""
