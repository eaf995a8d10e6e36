"""What `pipeline.convert` is made of: sources as byte ranges, parts made of them, and parts put together."""
