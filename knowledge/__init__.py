"""What an agent may know."""
