"""What a process gives: event loops, garbage collection, fork, signals, sockets, servers."""
