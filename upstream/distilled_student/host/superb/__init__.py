"""SUPERB's tasks in s3prl's own experts and recipes: their settings, checked, and helpers for today's libraries."""
