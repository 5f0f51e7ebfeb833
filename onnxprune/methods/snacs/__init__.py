"""SNACS (arXiv 2006.12463): scores by adaptive conditional mutual information."""
