"""Whether a judge is believed: it has to tell given replies from foils, better than their words alone do."""
