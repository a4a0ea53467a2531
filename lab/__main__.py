"""`python -m lab`."""

from ditail.standalone.process import run

if __name__ == "__main__":
    run("lab", "lab.cli")
