"""The tables and figures of arXiv:2508.05629."""
