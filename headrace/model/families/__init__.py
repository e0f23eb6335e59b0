"""One file per family of models: config in, Program out."""
