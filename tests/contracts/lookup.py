"""A program that looks up a file in an object store, to be run as a process of its own."""

ASK = (
    "import sys; from mint_contracts.backends import backend\n"
    "there = backend(sys.argv[1])\n"
    "try: there.files.info(sys.argv[2])\n"
    "except there.errors: pass"
)
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
