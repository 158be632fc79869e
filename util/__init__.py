"""The ground floor: what every other folder stands on and what knows nothing of models or data sets."""
