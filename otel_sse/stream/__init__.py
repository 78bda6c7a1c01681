"""One event stream, served or read: its counters, segments, stalls and close."""
