"""Results made readable: a diagnosis, figures, one HTML file, and files to keep."""
