"""Messages about files from anywhere."""


def plain_line(text: str, longest: int = 1000) -> str:
    """A text in one line, without what a terminal would obey, and the middle left out if it is long.

    File names, and what is written in files, may hold line breaks, escape sequences, and bytes that are no text.
    """
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return line if len(line) <= longest else f"{line[: longest - 400]} ... {line[-395:]}"


def first_line(error: BaseException) -> str:
    """What an error says first; some go on for pages."""
    return plain_line(str(error).partition("\n")[0])
