"""The pure part of a workflow: which step comes next."""
