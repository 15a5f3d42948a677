"""What families share: the row of one, geometry, common ways to cut pictures, names of parts, and the registry."""
