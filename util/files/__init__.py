"""Files and streams that results go to."""
