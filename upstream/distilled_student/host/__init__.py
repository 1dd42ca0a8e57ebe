"""s3prl as the host: its command line, its upstreams and its runner with our training loop."""
