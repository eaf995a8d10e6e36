"""The error of a wrong setting. In a file without other imports, so that every module can raise it cheaply."""


class ConfigError(ValueError):
    """A user's mistake in one line."""
