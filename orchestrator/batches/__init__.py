"""Many runs asked for at once: how they are read, fed to the workers, looked at, and forgotten."""
