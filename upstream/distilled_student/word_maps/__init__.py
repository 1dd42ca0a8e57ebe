"""Makes the file of a model that words of one's own need: see ``python -m distilled_student.word_maps --help``."""
