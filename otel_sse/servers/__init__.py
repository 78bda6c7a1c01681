"""Hooks of servers' frameworks and interfaces, one file each; none imports another but ``asgi``."""
