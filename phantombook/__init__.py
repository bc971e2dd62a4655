"""What makes the book: notebooks become pages, measurements become verdicts; and the command line."""
