"""The live process: configuration, engine, pipeline, publisher and client."""
