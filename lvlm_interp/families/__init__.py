"""Everything that names a family of models. Adding one touches this folder alone."""
