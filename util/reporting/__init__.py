"""What a run says: to the terminal, to log files, to trackers, as plots."""
