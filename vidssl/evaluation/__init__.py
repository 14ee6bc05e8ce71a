"""How good is an encoder? Retrieval by nearest neighbours and the colour histogram it has to beat."""
