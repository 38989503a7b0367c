"""The static site: all notebooks and documents as pages that need no network and no script."""
