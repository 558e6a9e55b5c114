"""Model providers: who answers a request, over which wire."""
