"""What is: watched, listed and read from the API server and Redis."""
