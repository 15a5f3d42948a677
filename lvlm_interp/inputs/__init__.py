"""One example: what was asked, with which pictures, and what every position of it is."""
