"""Downloads public corpora, arranges them as the shipped configs expect, and counts their files."""
