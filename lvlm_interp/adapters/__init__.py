"""Bridges to the packages that the field knows. Only the files in here import those packages; some take seconds."""
