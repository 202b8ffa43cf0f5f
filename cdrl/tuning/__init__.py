"""Searches: many short runs of one configuration with other settings, on Ray Tune (`cdrl tune`)."""
