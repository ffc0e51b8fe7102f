"""Text as others may be given it: printable, and broken between words."""
