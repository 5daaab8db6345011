"""The documents as a static site: the pages of `ops/docs`, built into what the service serves under /docs."""
