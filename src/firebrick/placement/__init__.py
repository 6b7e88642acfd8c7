"""Where a sandbox will run: filter, score and choose. Pure; a request and node views in, a Placement out."""
