"""Pictures: the diagrams of the method. The one room that imports matplotlib."""
