"""Teachers: one interface over the speech encoders of transformers, of s3prl and of this package."""
