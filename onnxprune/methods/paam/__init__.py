"""PAAM (arXiv 2210.11114): an attention network scores filters."""
