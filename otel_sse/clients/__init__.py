"""Hooks of HTTP client libraries, one file each; none imports another."""
