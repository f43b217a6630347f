"""The engine: plans a step, runs it, samples, and turns tokens into text."""
