"""The one error a user sees: a single line that names the file and the key, and exit code 2."""


class UserError(Exception):
    """Something the user gave cannot be used. The message is one line and names the file or the key at fault."""

    def __init__(self, message: object) -> None:
        super().__init__(" ".join(str(message).split()))
