"""Time, media and data: sources, clocks, audio-visual synchronisation, clips and data sets."""
