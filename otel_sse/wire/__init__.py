"""The bytes of an event stream: parsing, detection, trace comments. No I/O, no SDK."""
