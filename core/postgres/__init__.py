"""PostgreSQL as Django sees it: who waits for a connection waits for a bounded time."""
