"""The command line of main.py, and what it and its config ask for."""
