"""What an agent is: agents, their immutable versions, templates."""
