"""From documents to chunks."""
