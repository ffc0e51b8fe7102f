"""Files and folders that antrean writes for itself."""
