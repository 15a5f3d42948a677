"""Everything that names a family of models: a file here for each maker's group of families that share code.

To add a family, write it into the file that it belongs to, or into a new one; nothing else needs to know of it:

1. `FAMILIES` maps its `model_type` to a `Family`: what transformers itself does not say, how it cuts its pictures
   (`layout`, `merge`, `film`; see `shared.cuts` for what others do), or that its image tokens have no place (`whole`).
2. `NAMES` holds the names that only its code has: of modules, of arguments of the decoder, of model inputs. Those that
   many share stand in `shared.names`.
3. Its tiny model, its image processor and its videos go into a file of the same name in `tests/families`.

`shared.registry` collects the files; `import lvlm_interp` does not. No code elsewhere asks which family a model is of.
"""
