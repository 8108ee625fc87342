"""The models: HyenaRec and those to compare with, on disk and event by event."""
