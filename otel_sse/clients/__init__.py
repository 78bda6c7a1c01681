"""Hooks of HTTP client libraries, one file each; none imports another.

What requests and urllib3 share is in ``urllib3_body``.
"""
