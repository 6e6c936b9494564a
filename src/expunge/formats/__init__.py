"""Names and layouts of other programs' files."""
