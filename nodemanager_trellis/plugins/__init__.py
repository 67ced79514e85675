"""The built-in plugins. Pure: they import the model and the objects, never the substrate."""
