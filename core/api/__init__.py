"""What every HTTP edge shares: the one parser, the one error shape, tenant keys, views of actions."""
