"""Pictures: the report of a run, and the diagrams of the method; the room that has matplotlib."""
