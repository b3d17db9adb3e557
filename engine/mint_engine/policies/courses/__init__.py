"""Courses of waves' policies: what each does next, its lessons, and what it keeps."""
