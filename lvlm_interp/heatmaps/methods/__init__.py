"""The methods, one or several that are alike in a file; `heatmaps.method` collects them, and lists none by name."""
