"""What the rows of families share: what a row is, usual configs, and what is done with image and video processors."""
