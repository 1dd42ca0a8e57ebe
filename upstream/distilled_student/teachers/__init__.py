"""Teachers: one interface for the speech encoders of transformers, of s3prl and of this package."""
