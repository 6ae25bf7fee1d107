"""The mini scale: a task and a model small enough for two cores."""
