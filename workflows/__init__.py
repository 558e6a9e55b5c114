"""The planner: many agent runs in order."""
