"""zscmr_ray: zero-shot cross-modal retrieval on Ray."""

__version__ = "0.1.0"
