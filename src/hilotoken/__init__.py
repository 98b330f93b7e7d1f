"""hilotoken: make an edit cost what it changes."""
