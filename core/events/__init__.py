"""What clients hear: typed events, kept in the session's log, hinted to its open sockets."""
