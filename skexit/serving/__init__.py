"""Live networks as services on Ray Serve."""

from skexit.serving._application import serve_parts

__all__ = ["serve_parts"]
