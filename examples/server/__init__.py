"""A reference server of Server-Sent Events: copy it, and take away what you do not need."""
