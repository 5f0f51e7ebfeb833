"""CCI (arXiv 1910.11971): k of every G weights stay."""
