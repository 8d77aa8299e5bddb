"""The kinds of pictures, which the command line names before anything is drawn."""

KINDS = ("png", "svg", "pdf")
KIND = KINDS[0]
