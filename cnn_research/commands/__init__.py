"""The commands: flags, one call into the package, an exit code."""
