"""`python -m ditail`."""

from .standalone.process import run

if __name__ == "__main__":
    run("ditail", "ditail.standalone.cli")
