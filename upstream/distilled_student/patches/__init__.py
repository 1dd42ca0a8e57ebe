"""What has to be replaced in s3prl, torchaudio and huggingface_hub so that s3prl runs on today's libraries."""
