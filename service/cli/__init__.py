"""The command line; talks HTTP through the client."""
