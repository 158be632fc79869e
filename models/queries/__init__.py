"""Query makers: (memory, targets) -> (Queries, what they want to be supervised on, by site)."""
